// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// testEndpoint is where nobody dials: connections of in-memory shims are made by hand.
var testEndpoint = shimclient.Endpoint{Protocol: "ttrpc", Address: "unix:///nowhere.sock", Version: 3}

var noLayout bundle.Layout

// memManager is a manager without disk, processes and subscriptions, for tests in a synctest bubble. Its shim processes
// do not connect by themselves, unless change says so.
func memManager(t testing.TB, change ...func(*shimproc.Config)) *ShimManager {
	m, err := newManager(context.Background(), Config{Events: testExchange, Sandboxes: &sandboxStore{}})
	require.NoError(t, err)
	m.desk.Started = ago(time.Hour)
	c := m.registryConfig()
	c.Begin = func(func()) {}
	for _, f := range change {
		f(&c)
	}
	m.procs = shimproc.NewRegistry(c)
	m.begin()
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// ago is a constant for what tells a time.
func ago(d time.Duration) func() time.Time {
	t := time.Now().Add(-d)
	return func() time.Time { return t }
}

func memInstance(m *ShimManager, id string, st life.State) *Instance {
	return newInstance(m, noLayout, life.Task, testNamespace, id, st)
}

// memTask is a created instance with a pid, behind a process that is not yet connected.
func memTask(t testing.TB, m *ShimManager, id string, pid uint32) (*Instance, *shimproc.Process) {
	return memTaskFrom(t, m, id, pid, shimproc.Origin{Launched: true})
}

func memTaskFrom(t testing.TB, m *ShimManager, id string, pid uint32, from shimproc.Origin) (*Instance,
	*shimproc.Process) {
	i := memInstance(m, id, life.Running)
	i.ledger.Load(&bundle.Record{Created: true,
		Task: &bundle.TaskState{Status: "RUNNING", Pid: pid, PidStart: startOf(t, pid)}})
	ep := shimclient.Endpoint{Protocol: "ttrpc", Address: "unix:///nowhere-of-" + id + ".sock", Version: 3}
	p, _, err := m.procs.Attach(behind{i}, ep, from)
	require.NoError(t, err)
	m.instances[i.key()] = i
	t.Cleanup(p.End)
	return i, p
}

// testExchange serves all tests: an exchange has a goroutine that nothing ends.
var testExchange = exchange.NewExchange()

// connectedTask is a running task behind a process that is connected to the shim s.
func connectedTask(t testing.TB, id string, pid uint32) (s *memShim, i *Instance, p *shimproc.Process) {
	s = newMemShim(t)
	i, p = memTask(t, memManager(t), id, pid)
	require.NoError(t, p.OnConnected(s.connect()))
	return s, i, p
}

// joining is an instance that is being created in a shim that serves others.
func joining(t testing.TB, m *ShimManager, p *shimproc.Process, id string) *Instance {
	i := memInstance(m, id, life.Launching)
	edit(i, func(r *bundle.Record) { r.Joined = true })
	m.instances[i.key()] = i
	require.NoError(t, p.Join(behind{i}, shimproc.Origin{Launched: true}))
	return i
}

// createdTask is one whose Create was answered with pid 100 and whose Start answers with the test's own.
func createdTask(t *testing.T, m *ShimManager) (*Instance, *memShim) {
	t.Helper()
	s := newMemShim(t)
	i, p := memTask(t, m, "c1", 100)
	edit(i, func(r *bundle.Record) { r.Task.Status = tasktypes.Status_CREATED.String() })
	require.NoError(t, p.OnConnected(s.connect()))
	return i, s
}

// answeredTask is a task with an exec whose shim answers Waits with exit 3 and tells nothing.
func answeredTask(t *testing.T, m *ShimManager) *Instance {
	t.Helper()
	s := newMemShim(t)
	i, p := memTask(t, m, "c1", 77)
	require.NoError(t, p.OnConnected(s.connect()))
	i.ledger.ExecAdded("e1")
	i.ledger.ExecStarted("e1", 78)
	s.exitWith(3, time.Now())
	return i
}

// putInto puts an instance into a state past all events, for tests of what follows in that state.
func putInto(i *Instance, st life.State) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.state, i.since = st, time.Now()
	i.announceLocked()
}

// edit changes what is on record of an instance that nothing happens to meanwhile.
func edit(i *Instance, f func(*bundle.Record)) {
	rec := i.ledger.Record()
	f(rec)
	i.ledger.Load(rec)
}

// learnState has an answer to State come to the instance.
func learnState(i *Instance, s *taskapi.StateResponse) {
	i.learnPid(s.Pid)
	i.ledger.LearnState(s, i.ledger.Epoch())
}

// ownPid is the pid of a process that is sure to live.
func ownPid() uint32 { return uint32(os.Getpid()) }

// startOf is the start time of a process; 0 when there is none.
func startOf(t testing.TB, pid uint32) uint64 {
	t.Helper()
	id, err := shimclient.LookupProcess(int(pid))
	if err != nil {
		return 0
	}
	return id.StartTime
}
