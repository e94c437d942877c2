// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

var (
	chaosTime = flag.Duration("chaos.time", time.Minute, "how long TestChaos runs")
	chaosSeed = flag.Uint64("chaos.seed", 0, "what TestChaos's operations follow from; 0: a new one")
	chaosWith = flag.String("chaos.shims", "runc,ttrpc,grpc,legacy",
		"the kinds of shims that TestChaos runs, separated by commas")
	chaosSkip = flag.String("chaos.without", "",
		"faults that TestChaos leaves out, separated by commas; all else stays as planned")
	chaosKeep = flag.String("chaos.keep", "",
		"a directory where a TestChaos that fails leaves its journal and the daemon's log")
)

const (
	chaosWorkers = 4
	// chaosSteps is how many operations a worker plans for a round, chaosFaults how many faults there are in one at
	// most.
	chaosSteps  = 60
	chaosFaults = 12
	// clearEvery is how often a round ends with no task left, and the daemon is held against what it held at the
	// beginning.
	clearEvery = 4
	// diskSize is that of the state directory's file system.
	diskSize = "size=8m,nr_inodes=4096,mode=0711"
)

// chaos is one run of TestChaos: a daemon, the containers that all operations are about, and what is known of them.
type chaos struct {
	*node
	seed    uint64
	slots   []*slot
	fakes   map[string]*shimtest.Shim
	metrics string // where it serves them
	journal
	counts counts

	base   holding // of the daemon without a task
	round  int
	opened int // sessions so far
	fulls  []span
	// away are the sockets that were moved away. Only the test's own goroutine uses it.
	away []awaySocket
	// hooks are what hooks have left behind, until the next clearing. Only the test's own goroutine uses it.
	hooks []hookDaemon

	mu   sync.Mutex // guards what follows
	sess *session   // nil: the daemon is down
	up   chan struct{}
	// sessions are all of the run, those that have ended included.
	sessions []*session
}

// Random operations and faults, over and over: whatever happens, what the daemon says of the containers agrees with
// what is there, exits are told once and truthfully, and nothing is left. What is done follows from the seed alone; how
// the operations interleave does not, so a seed that fails may have to be run again for some time. An interrupt ends it
// after the round.
func TestChaos(t *testing.T) {
	needRoot(t)
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64() % 1_000_000
	}
	t.Logf("chaos: seed %d, for %s (to replay: -chaos.seed=%d)", seed, *chaosTime, seed)
	c := newChaos(t, seed)
	end, enough := time.Now().Add(*chaosTime), make(chan os.Signal, 1)
	signal.Notify(enough, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(enough)
	for c.round = 1; ; c.round++ {
		last := time.Now().After(end) || len(enough) > 0
		c.runRound(last)
		if last {
			break
		}
	}
	scrapeFew(t, c.metrics)
	c.closeSession()
	c.unmount()
	t.Logf("chaos: seed %d, %d rounds without a violation\n%s", seed, c.round, c.counts.String())
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{seed: seed, up: make(chan struct{}), fakes: map[string]*shimtest.Shim{}}
	for name, s := range chaosFakes {
		if strings.Contains(*chaosWith, name) {
			// What is left is for the checks of each round; these would not name the seed.
			c.fakes[name] = shimtest.Install(t, s)
		}
	}
	c.metrics = freeAddress(t)
	c.node = newNode(t, withMetrics(c.metrics))
	c.counts.of = map[string]*count{}
	c.openJournal()
	t.Cleanup(c.report)
	t.Cleanup(c.lift)
	c.makeSlots()
	c.Stop()
	c.mount()
	c.Run()
	c.open()
	c.warmUpAll()
	c.closeClients()
	c.base = c.rest()
	c.openClients()
	return c
}

// chaosFakes are the kinds of fake shims.
var chaosFakes = map[string]shimtest.Scenario{
	"ttrpc":  {},
	"grpc":   {Transport: "grpc"},
	"legacy": {Generation: shimtest.Legacy, Socket: shimtest.Abstract},
}

// stateDir is the daemon's state directory, a small file system of its own.
func (c *chaos) stateDir() string { return filepath.Join(c.Dir, "state") }

func (c *chaos) mount() {
	require.NoError(c.t, unix.Mount("tmpfs", c.stateDir(), "tmpfs", 0, diskSize))
}

func (c *chaos) unmount() {
	c.Stop()
	require.NoError(c.t, unix.Unmount(c.stateDir(), 0))
}

// lift ends all faults, so that what a failed test left can be removed.
func (c *chaos) lift() {
	c.continueAll()
	c.returnSockets()
	c.emptyDisk()
	c.killHooks()
}

// runRound lets the workers and the faults loose, then calms everything down and looks.
func (c *chaos) runRound(last bool) {
	plan := c.plan(c.round)
	c.note(nil, "round %d of seed %d", c.round, c.seed)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w, steps := range plan.workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c.work(w, steps, stop)
		}()
	}
	for _, f := range plan.faults {
		time.Sleep(f.pause)
		c.inflict(f)
	}
	close(stop)
	c.calm()
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		c.fail(nil, "operations of round %d do not end", c.round)
	}
	c.settle("after a round", c.check)
	if last || c.round%clearEvery == 0 {
		defer c.endHooks()
	}
	if last || c.round%clearEvery == 0 {
		c.clear()
	}
}

// calm ends all faults and brings the daemon up.
func (c *chaos) calm() {
	c.continueAll()
	c.returnSockets()
	c.emptyDisk()
	for _, f := range c.fakes {
		f.Update(func(s *shimtest.Scenario) { s.Rules, s.Events = nil, nil })
		_ = os.Truncate(filepath.Join(f.Home, "trace.jsonl"), 0) // it would grow for hours
	}
	if c.session() == nil {
		c.Run()
		c.open()
	}
	c.continueAll() // what was starting meanwhile
}

// settle waits until look finds nothing to complain about.
func (c *chaos) settle(when string, look func() []complaint) {
	deadline, last := time.Now().Add(patience+30*time.Second), ""
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		complaints := look()
		if len(complaints) == 0 {
			return
		}
		if text := complaints[0].text; text != last {
			head, _, _ := strings.Cut(text, "\n")
			c.note(complaints[0].s, "not settled %s: %s", when, head)
			last = text
		}
		hopeless := time.Now().After(deadline)
		for _, x := range complaints {
			hopeless = hopeless || x.final
		}
		if hopeless {
			late := time.Now().After(deadline)
			for _, x := range complaints {
				if x.final || late {
					c.fail(x.s, "%s: %s", when, x.text)
				}
			}
			c.t.FailNow()
		}
		time.Sleep(pause)
	}
}

// complaint is something that is not as it should be. One that is not final may pass.
type complaint struct {
	s     *slot
	text  string
	final bool
}

// count of an operation: how often it was done, and how often that was answered without an error.
type count struct{ done, ok int }

type counts struct {
	mu sync.Mutex
	of map[string]*count
}

func (c *counts) add(op string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.of[op]
	if n == nil {
		n = &count{}
		c.of[op] = n
	}
	n.done++
	if err == nil {
		n.ok++
	}
}

func (c *counts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines []string
	for op, n := range c.of {
		lines = append(lines, fmt.Sprintf("%-18s %7d, %7d without an error", op, n.done, n.ok))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}
