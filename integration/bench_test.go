// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/integration/internal/report"
)

var (
	benchRounds = flag.Int("bench.rounds", 100, "how many containers of each side TestBench measures one by one")
	benchOnly   = flag.String("bench.only", "",
		"sections of TestBench, separated by commas, of "+strings.Join(benchSections, ",")+"; empty: all")
	benchOut = flag.String("bench.out", "",
		"the directory of TestBench's report; empty: bench/ for a run of all sections, none for others")
	benchReadme = flag.String("bench.readme", "",
		"a file that TestBench puts its short table into, between the marks of the benchmark")
	benchProfile = flag.String("bench.profile", "",
		"a directory for CPU profiles of the custom daemon during TestBench's latency and cpu sections")
)

// benchEnv includes TestBench, which takes minutes and gigabytes.
const benchEnv = "SHIMYARD_BENCH"

var benchSections = []string{"latency", "throughput", "storm", "calls", "cpu", "exec", "execs", "crun", "cri", "list", "memory",
	"restart", "stalled", "scale"}

// plan says how much of each thing a benchmark does.
type plan struct {
	sections   []string
	rounds     int // containers one by one, execs
	drop       int // of the first rounds
	workers    []int
	containers int // of one measurement of throughput, on each side
	passes     int // measurements of throughput for each number of workers
	sizes      []int
	asks       int // lists and the like at each size
	restarts   int // at each size
	restartAt  []int
	stalled    int   // of the largest size
	traced     int   // containers whose execs are counted
	scale      []int // how many tasks of a fake shim
	pods       int   // through CRI, one by one; and of one measurement of how many a second
}

func (p *plan) wants(section string) bool { return slices.Contains(p.sections, section) }

// fullPlan is what make bench does.
func fullPlan() plan {
	p := plan{
		sections: benchSections, rounds: *benchRounds, drop: 5,
		workers: []int{1, 4, 8, 32}, containers: 48, passes: 5,
		sizes: []int{0, 10, 100, 300}, asks: 15, restarts: 5, restartAt: []int{0, 100, 300}, stalled: 20, traced: 20, pods: 30, scale: []int{1000, 5000},
	}
	if *benchOnly != "" {
		p.sections = strings.Split(*benchOnly, ",")
	}
	p.passes = max(1, min(p.passes, p.rounds/4))
	return p
}

// bench is one run: both daemons, side by side on one tmpfs, and what was measured.
type bench struct {
	plan
	t       *testing.T
	dir     string // a tmpfs, as /run is
	stock   *benchNode
	ours    *benchNode
	bare    *bare
	crun    *bare    // nil: it cannot be had, or is not asked for
	lenient *lenient // what stock leaves behind is an error, until it is made to
	load    string   // of the machine, before
	results report.Results
}

// Measures the custom daemon beside stock containerd and bare runc and writes what it finds to bench/. It checks that
// all that it measures is done, and no time.
func TestBench(t *testing.T) {
	if os.Getenv(benchEnv) == "" {
		t.Skipf("takes minutes; make bench runs it (%s=1)", benchEnv)
	}
	p := fullPlan()
	for _, s := range p.sections {
		require.Contains(t, benchSections, s, "there is no such section")
	}
	out := *benchOut
	if out == "" && *benchOnly == "" {
		out = filepath.Join(kit.Module, "bench")
	}
	b := newBench(t, p)
	b.run()
	b.write(out, *benchReadme)
}

// The benchmark itself works: a little of everything that it does.
func TestBenchSmoke(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	b := newBench(t, plan{
		sections: benchSections, rounds: 2, drop: 1, workers: []int{1, 4}, containers: 4, passes: 1,
		sizes: []int{0, 2, 4}, asks: 1, restarts: 1, restartAt: []int{0, 4}, stalled: 1, traced: 1, pods: 1, scale: []int{2, 4},
	})
	b.run()
	readme := filepath.Join(out, "README.md")
	require.NoError(t, os.WriteFile(readme, []byte("before\n"+report.Begin+"\nold\n"+report.End+"\nafter\n"), 0o600))
	b.write(out, readme)
	for _, row := range b.results.Rows {
		require.True(t, row.Has(report.Ours) || row.Has(report.Bare), "%s: %s was not measured", row.Section, row.Name)
	}
	text, err := os.ReadFile(readme)
	require.NoError(t, err)
	require.NotContains(t, string(text), "old")
	require.FileExists(t, filepath.Join(out, plotFile))
	short := 0
	for _, row := range b.results.Rows {
		if row.Brief != "" {
			short++
		}
	}
	require.LessOrEqual(t, short, 10, "the README has room for ten rows")
}

func newBench(t *testing.T, p plan) *bench {
	t.Helper()
	needRoot(t)
	load, err := os.ReadFile("/proc/loadavg")
	require.NoError(t, err)
	b := &bench{plan: p, t: t, dir: ramDir(t), lenient: &lenient{TB: t}, load: strings.Fields(string(load))[0]}
	b.findCrun()
	b.stock = b.start(b.lenient, report.Stock, tool(t, kit.Stock))
	b.ours = b.start(t, report.Ours, kit.daemon)
	b.ours.warmUp()
	b.bare = newBare(b, "bare", kit.runc)
	return b
}

// benchNode is a daemon with the column that its numbers go to.
type benchNode struct {
	*node
	side    report.Side
	metrics string // address of the endpoint
}

// start runs a daemon whose config is the other's, but for the address of its metrics.
func (b *bench) start(tb testing.TB, side report.Side, binary string) *benchNode {
	metrics := freeAddress(b.t)
	o := daemon.Options{
		Binary: binary, Path: []string{filepath.Dir(kit.shim), filepath.Dir(kit.runc)}, Parent: b.dir,
		WarmIdle: "1m", // the default
		Env:      b.environ(),
		Extra:    "[plugins.'io.containerd.server.v1.metrics']\naddress = '" + metrics + "'\n",
	}
	return &benchNode{node: newNodeOn(b.t, tb, o), side: side, metrics: metrics}
}

// freeAddress is one at which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// ramDir is a tmpfs that is gone at the end of the test.
func ramDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sb-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o711))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0711"))
	t.Cleanup(func() {
		require.NoError(t, unix.Unmount(dir, 0))
		require.NoError(t, os.Remove(dir))
	})
	return dir
}

func (b *bench) run() {
	begin := time.Now()
	for _, s := range []struct {
		name string
		do   func()
	}{{"latency", b.latency}, {"throughput", b.throughput}, {"storm", b.storm}, {"calls", b.calls}, {"cpu", b.cpu},
		{"exec", b.exec}, {"execs", b.execs}, {"crun", b.withCrun},
		{"cri", b.cri}} {
		if b.wants(s.name) {
			b.refresh()
			from := time.Now()
			s.do()
			b.t.Logf("%s took %s", s.name, time.Since(from).Round(time.Second))
		}
	}
	if b.wants("list") || b.wants("memory") || b.wants("restart") || b.wants("stalled") {
		b.crowds()
	}
	if b.wants("scale") {
		from := time.Now()
		b.thousands()
		b.t.Logf("scale took %s", time.Since(from).Round(time.Second))
	}
	b.refresh()
	require.Empty(b.t, b.bare.leftovers(), "left of bare runc")
	if b.crun != nil {
		require.Empty(b.t, b.crun.leftovers(), "left of bare crun")
	}
	if !b.lenient.on {
		require.Empty(b.t, b.stock.Leftovers(), "left by stock containerd")
	}
	b.results.Machine = b.machine()
	b.ours.Stop() // and with it idle shims
	require.Empty(b.t, b.ours.Leftovers(), "left by the custom daemon")
	b.t.Logf("measured in %s", time.Since(begin).Round(time.Second))
}

// refresh gives the calls to come their whole patience.
func (b *bench) refresh() {
	b.stock.ctx = b.stock.context(testNS)
	b.ours.ctx = b.ours.context(testNS)
}

// lenient is a test that, while on, only writes down what goes wrong.
type lenient struct {
	testing.TB
	on bool
}

func (l *lenient) Errorf(format string, args ...any) {
	l.Helper()
	if l.on {
		l.Logf(format, args...)
		return
	}
	l.TB.Errorf(format, args...)
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
