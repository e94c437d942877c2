// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// until waits for something that has to come.
func (y *yard) until(what string, done func() bool) {
	y.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.FailNow(y, "waiting in vain until "+what)
		}
	}
}

// instance of a task, in whatever state.
func (y *yard) instance(id string) *Instance { return y.m.find(testNamespace, id) }

// inState waits until an instance is in a state.
func (y *yard) inState(id string, want life.State) *Instance {
	y.Helper()
	var i *Instance
	y.until("task "+id+" is "+want.String(), func() bool {
		if i = y.instance(id); i == nil {
			return false
		}
		st, _ := i.watch()
		return st == want
	})
	return i
}

// awaitSilence waits until a task's shim is known to be silent.
func (y *yard) awaitSilence(id string) {
	y.Helper()
	y.until("the breaker is open", func() bool {
		p := y.instance(id).process() // nil until its record is read
		return p != nil && processStateOf(p) == shimproc.Unresponsive
	})
}

// record of a task's bundle.
func (y *yard) record(id string) *bundle.Record {
	y.Helper()
	b, err := bundle.Layout{State: y.path("state"), Root: y.path("root")}.Open(testNamespace, id)
	require.NoError(y, err)
	r, err := b.ReadRecord()
	require.NoError(y, err)
	return r
}

// written waits until it is on disk that the exit of a task was told.
func (y *yard) written(id string) {
	y.Helper()
	y.until("the record is written", func() bool {
		e := y.record(id).Task.Exit
		return e != nil && e.Told && !strings.Contains(stacks(), "ledger.(*Ledger).Save")
	})
}

// left lists what is in the directories of the daemon.
func (y *yard) left() []string {
	var found []string
	for _, dir := range []string{"state", "root", "sstate", "sroot"} {
		ids, _ := filepath.Glob(y.path(dir, "*", "*"))
		hidden, _ := filepath.Glob(y.path(dir, "*", ".*"))
		found = append(found, slices.Concat(ids, hidden)...)
	}
	return found
}

func (y *yard) checkTidy() {
	if y.untidy || y.Failed() {
		return
	}
	require.Empty(y, y.left(), "bundles or work directories are left")
	require.Empty(y, y.mounts.names(), "mounts are left active")
}

// empty waits until the daemon knows of nothing any more, which every create that failed and every delete must come to.
func (y *yard) empty() {
	y.Helper()
	y.until("the manager is empty", func() bool {
		y.m.mu.Lock()
		defer y.m.mu.Unlock()
		return len(y.m.instances) == 0 && len(y.m.procs.All()) == 0 && len(y.m.leaving) == 0
	})
	require.Empty(y, y.left(), "bundles or work directories are left")
}

func idsOf(heard []told) []string {
	var ids []string
	for _, h := range heard {
		ids = append(ids, h.ID)
	}
	return ids
}

func topicsOf(heard []told) []string {
	var topics []string
	for _, h := range heard {
		topics = append(topics, h.Topic)
	}
	return topics
}

// exitsOf are the events of a task that a dead shim's exit is about, in order, once there will be no more of them.
func (y *yard) exitsOf(id string) []told {
	y.Helper()
	y.events.await(id, deleteTopic, 1)
	y.empty()
	y.events.settle()
	return y.events.of(id, exitTopic, deleteTopic)
}

// endedOnce requires that one exit and one deletion of a task were told, and that nothing is left of anything.
func (y *yard) endedOnce(id string) {
	y.Helper()
	require.Equal(y, []string{id, ""}, idsOf(y.exitsOf(id)))
	y.empty()
	require.Empty(y, y.shim.Procs())
}

// topicsOf are the exits and what precedes them, of a container.
func (y *yard) topicsOf(id string) []string {
	y.Helper()
	y.events.settle()
	var topics []string
	for _, e := range y.events.of(id, oomTopic, exitTopic, deleteTopic) {
		topics = append(topics, e.Topic)
	}
	return topics
}

// rpcs counts the calls of a method for a task's init from a point of the trace on.
func (y *yard) rpcs(from int, method, id string) int {
	y.Helper()
	n := 0
	for _, e := range y.shim.Trace()[from:] {
		if e.Kind == shimtest.KindRPC && e.Action == method && e.ID == id && e.ExecID == "" {
			n++
		}
	}
	return n
}

// oneConnection waits until a task's shim has one connection: it learns late of the end of an earlier one.
func (y *yard) oneConnection(id string) {
	y.Helper()
	y.until("there is one connection", func() bool { return y.connections(id) == 1 })
}

// connections counts those to the socket of a task's shim.
func (y *yard) connections(id string) int {
	y.Helper()
	path := strings.TrimPrefix(y.instance(id).process().Endpoint.Address, "unix://")
	data, err := os.ReadFile("/proc/net/unix")
	require.NoError(y, err)
	n := 0
	for line := range strings.Lines(string(data)) {
		// Num RefCount Protocol Flags Type St Inode Path; the accepted ones bear the listener's path.
		if f := strings.Fields(line); len(f) == 8 && f[7] == path && f[5] == "03" {
			n++
		}
	}
	return n
}

// isWhole requires that a task is as it was and can be used up.
func (y *yard) isWhole(id string, before runtime.State, d damage) {
	y.Helper()
	what := fmt.Sprintf("%s is %s", d.file, d.how)
	y.until(id+" is taken over, though "+what, func() bool {
		i := y.instance(id)
		require.NotNil(y, i, what)
		st, _ := i.watch()
		return st == life.Running
	})
	task := mustGet(y, id)
	require.Equal(y, before, y.state(task), what)
	exit, err := y.exec(task, "e1", "exit", "5").Wait(y.ctx)
	require.NoError(y, err, what)
	require.Equal(y, uint32(5), exit.Status, what)
	_, err = os.Stat(filepath.Join(y.bundle(id), "bootstrap.json"))
	require.NoError(y, err, "another containerd must find the shim, though %s", what)
	require.Equal(y, uint32(137), y.remove(id).Status, what)
	y.until(id+" is gone", func() bool { return y.instance(id) == nil })
	require.NoDirExists(y, y.bundle(id), what)
}

// wasBuried requires that the exit and the deletion of a task were told, and that nothing of it is left.
func (y *yard) wasBuried(id string, pid uint32, d damage) {
	y.Helper()
	what := fmt.Sprintf("%s is %s", d.file, d.how)
	y.until(id+" is gone, though "+what, func() bool { return y.instance(id) == nil })
	y.events.await(id, deleteTopic, 1)
	heard := y.events.of(id, exitTopic, deleteTopic)
	require.Equal(y, []string{id, ""}, idsOf(heard), what)
	require.Equal(y, uint32(137), heard[0].Status, what)
	if d.file != "init.pid" && d.file != "shimyard.json" {
		require.Equal(y, pid, heard[0].Pid, what)
	}
	_, err := os.Lstat(y.bundle(id))
	require.ErrorIs(y, err, fs.ErrNotExist, what)
}

// steady requires that rounds leave the daemon with the descriptors and goroutines that it had.
func (y *yard) steady(rounds int, round func(n int)) {
	y.Helper()
	for n := range 3 { // what is made once and stays
		round(n)
	}
	fds, routines := openFiles(y.T), goruntime.NumGoroutine()
	for n := range rounds {
		round(n)
	}
	y.until("the descriptors are as they were", func() bool { return openFiles(y.T) <= fds })
	y.until("the goroutines are as they were", func() bool { return goruntime.NumGoroutine() <= routines })
}

func (y *yard) round(id string, o runtime.CreateOpts) {
	y.Helper()
	task, err := y.tasks.Create(y.ctx, id, o)
	require.NoError(y, err)
	require.NoError(y, task.Start(y.ctx))
	require.NoError(y, task.Kill(y.ctx, 9, true))
	_, err = task.Wait(y.ctx)
	require.NoError(y, err)
	_, err = y.tasks.Delete(y.ctx, id)
	require.NoError(y, err)
}
