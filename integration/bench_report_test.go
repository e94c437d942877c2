// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/report"
)

const (
	tableFile = "results.md"
	plotFile  = "results.png"
)

// panels of the plot.
var panels = []report.Panel{
	{Chart: chartLatency, Title: "One container at a time"},
	{Chart: chartThroughput, Title: "Containers a second, create to delete"},
	{Chart: chartAsk, Title: "Asking about all tasks", Log: true},
	{Chart: chartRestart, Title: "Restart to ready, by running containers", Log: true},
}

// about says how it was measured.
func (b *bench) about() []string {
	p := b.plan
	return []string{
		"`make bench` has written this. Stock containerd and the one with Shimyard run side by side, with the same config, shim, runc and image, " +
			"each in a root of its own on a tmpfs, and do the same work in turn; bare runc is `runc create`, `start` and `delete` with the same spec, " +
			"and the mount and unmount of the same overlay. What is shown is the median, the quartiles in parentheses.",
		fmt.Sprintf("One at a time: %d containers on each side, after %d that do not count. Times are a client's: create is NewTask without IO, the "+
			"container's metadata and snapshot are made before; kill and exit lie between start and delete and are in neither. Over bare runc: minus "+
			"what bare runc took in the same round. Containers a second: %d measurements of %d containers each (half as many for one at once).",
			p.rounds, p.drop, p.passes, p.containers),
		fmt.Sprintf("Asking and restarts: containers of real runc, each with its shim. A restart is SIGTERM, then the start; ready is when the "+
			"health service answers, %d times. Stalled shims are stopped with SIGSTOP. Programs run are counted by the kernel's sched_process_exec trace event "+
			"(ftrace), following the daemon's forks.", p.restarts),
		fmt.Sprintf("crun is Debian's, with specs of version %s. Pods through CRI have host networking, so that no CNI plugin is measured, and "+
			"one container; a pod is all calls from RunPodSandbox to RemovePodSandbox. Many tasks: %d, of a fake shim that is as quick as "+
			"can be, %d in a process; what grows by an exponent of 1 grows in proportion.", crunSpec, p.scale, perShim),
		"CPU time of the daemon is what the scheduler counts for its threads, without those of shim and runc. In a storm all creates are sent at once, right " +
			"after a start of the daemon; a container runs when its start is answered.",
	}
}

// write shows the table and, where there is a directory for it, writes table and plot; readme's part between the marks
// too.
func (b *bench) write(dir, readme string) {
	b.results.About = b.about()
	b.t.Logf("%s\n%s", b.results.Machine.Markdown(), b.results.Table())
	if dir != "" {
		require.NoError(b.t, os.MkdirAll(dir, 0o755))
		require.NoError(b.t, os.WriteFile(filepath.Join(dir, tableFile), []byte(b.results.Markdown(plotFile)), 0o644))
		var buf bytes.Buffer
		require.NoError(b.t, b.results.Plot(&buf, panels))
		require.NoError(b.t, os.WriteFile(filepath.Join(dir, plotFile), buf.Bytes(), 0o644))
	}
	if readme != "" {
		text, err := os.ReadFile(readme)
		require.NoError(b.t, err)
		replaced, err := report.Replace(string(text), b.results.Machine.Markdown()+"\n"+b.results.Brief())
		require.NoError(b.t, err)
		require.NoError(b.t, os.WriteFile(readme, []byte(replaced), 0o644))
	}
}

func (b *bench) machine() report.Machine {
	var name unix.Utsname
	require.NoError(b.t, unix.Uname(&name))
	groups := "cgroup v1"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		groups = "cgroup v2"
	}
	var info unix.Sysinfo_t
	require.NoError(b.t, unix.Sysinfo(&info))
	cpu := "unknown CPU"
	data, err := os.ReadFile("/proc/cpuinfo")
	require.NoError(b.t, err)
	if m := cpuName.FindSubmatch(data); m != nil {
		cpu = string(m[1])
	}
	return report.Machine{
		When: time.Now(), CPU: cpu, Cores: runtime.NumCPU(),
		Memory: fmt.Sprintf("%d GiB", uint64(info.Totalram)*uint64(info.Unit)>>30),
		Kernel: unix.ByteSliceToString(name.Release[:]), Cgroups: groups, Filesystem: "tmpfs", Load: b.load,
		Stock: b.version(b.stock), Ours: b.version(b.ours), Runc: b.runcVersion(), Go: runtime.Version(),
	}
}

var cpuName = regexp.MustCompile(`(?m)^model name\s*:\s*(.+)$`)

// version of a daemon as its binary tells it: it may not run any more.
func (b *bench) version(n *benchNode) string {
	binary := kit.daemon
	if n == b.stock {
		binary = tool(b.t, kit.Stock)
	}
	out, err := exec.Command(binary, "--version").Output()
	require.NoError(b.t, err)
	f := strings.Fields(string(out)) // containerd, the module, the version, the revision
	require.GreaterOrEqual(b.t, len(f), 3, "%s", out)
	return f[2]
}

func (b *bench) runcVersion() string {
	out, err := exec.Command(kit.runc, "--version").Output()
	require.NoError(b.t, err)
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
