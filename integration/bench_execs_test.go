// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/report"
)

// execs counts the programs that are run for one container, by the kernel's own account: ftrace's sched_process_exec,
// in a trace that follows the forks of one daemon (for bare runc: of this process).
func (b *bench) execs() {
	dir, err := tracefs(b.t)
	if err != nil {
		b.t.Logf("nobody counts what is run: %v", err)
		return
	}
	const section = "Programs run for one container, from create to delete"
	row := func(name string) *report.Row {
		return b.results.Add(report.Row{Section: section, Name: name})
	}
	all, shim := row("execve, all but that of the container's own program"), row("… of the shim's binary")
	runc, init, others := row("… of runc"), row("… of runc again, as the container's init"), row("… of anything else")
	for _, c := range b.contenders(0) {
		const warm = 3
		subjects, discard := b.prepared(c, "execs", warm+b.traced)
		var trace *execTrace
		for i, s := range subjects {
			if i == warm {
				trace = newExecTrace(b.t, dir, b.tracedBy(c.side))
			}
			require.NoError(b.t, cycle(s))
			if i < warm {
				continue
			}
			count := trace.take(b.t)
			require.NotZero(b.t, count["runc"], "the trace does not see runc")
			all.Sample(c.side, float64(count["shim"]+count["runc"]+count["init"]+count["other"]))
			shim.Sample(c.side, float64(count["shim"]))
			runc.Sample(c.side, float64(count["runc"]))
			init.Sample(c.side, float64(count["init"]))
			others.Sample(c.side, float64(count["other"]))
		}
		trace.close(b.t)
		discard()
	}
}

// tracedBy lists the threads whose forks run what is to be counted: the daemon's, its shims', for bare runc our own.
func (b *bench) tracedBy(s report.Side) []int {
	pids := []int{os.Getpid()}
	if s != report.Bare {
		n := map[report.Side]*benchNode{report.Stock: b.stock, report.Ours: b.ours}[s]
		pids = []int{n.Pid()}
		for _, p := range n.Processes() {
			pids = append(pids, p.Pid)
		}
	}
	var threads []int
	for _, pid := range pids {
		found, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, path := range found {
			thread, err := strconv.Atoi(filepath.Base(path))
			require.NoError(b.t, err)
			threads = append(threads, thread)
		}
	}
	return threads
}

// tracefs mounts the kernel's tracing files where nobody else looks; an error where the kernel has none.
func tracefs(t *testing.T) (string, error) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tracefs", dir, "tracefs", 0, ""); err != nil {
		return "", errors.Wrap(err, "cannot trace")
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir, nil
}

// execTrace is a trace of its own, apart from those of others on the machine.
type execTrace struct{ dir string }

func newExecTrace(t *testing.T, tracefs string, threads []int) *execTrace {
	t.Helper()
	e := &execTrace{dir: filepath.Join(tracefs, "instances", fmt.Sprintf("shimyard-%d", os.Getpid()))}
	require.NoError(t, os.Mkdir(e.dir, 0o700))
	t.Cleanup(func() { _ = unix.Rmdir(e.dir) }) // it outlives the mount where a test fails
	var list []string
	for _, thread := range threads {
		list = append(list, strconv.Itoa(thread))
	}
	e.write(t, "options/event-fork", "1")
	e.write(t, "set_event_pid", strings.Join(list, " "))
	e.write(t, "events/sched/sched_process_exec/enable", "1")
	return e
}

func (e *execTrace) write(t *testing.T, file, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(e.dir, file), []byte(text), 0o600))
}

var execLine = regexp.MustCompile(`sched_process_exec: filename=(\S+)`)

// take counts what was run since it was last called, by what it was.
func (e *execTrace) take(t *testing.T) map[string]int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(e.dir, "trace"))
	require.NoError(t, err)
	e.write(t, "trace", "")
	count := map[string]int{}
	for _, m := range execLine.FindAllStringSubmatch(string(data), -1) {
		switch program := m[1]; {
		case strings.HasPrefix(filepath.Base(program), "containerd-shim-"):
			count["shim"]++
		case program == kit.runc:
			count["runc"]++
		case strings.HasPrefix(program, "/proc/self/"), strings.HasPrefix(program, "/dev/fd/"),
			strings.HasPrefix(program, "memfd:"):
			count["init"]++
		case program == "/bin/sleep":
			// The container's own, which a kill may forestall.
		default:
			count["other"]++
		}
	}
	return count
}

func (e *execTrace) close(t *testing.T) {
	t.Helper()
	e.write(t, "events/sched/sched_process_exec/enable", "0")
	require.NoError(t, errors.Wrap(unix.Rmdir(e.dir), "cannot remove the trace"))
}
