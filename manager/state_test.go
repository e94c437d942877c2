// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

var allStates = []state{launching, restoring, running, deleting, reaping, dead, gone}

// TestInstanceEvents goes through every event in every state. What is not in an event's table changes nothing and asks for nothing.
func TestInstanceEvents(t *testing.T) {
	shimtest.CheckLeaks(t)
	type outcome struct {
		next  state
		yours bool // the caller is to go on
	}
	for _, c := range []struct {
		event string
		fire  func(*Instance) bool
		leads map[state]outcome
	}{
		{"created", func(i *Instance) bool { i.onCreated(0, runtime.IO{}); return false },
			map[state]outcome{launching: {running, false}}},
		{"launch failed", (*Instance).onLaunchFailed,
			map[state]outcome{launching: {reaping, true}}},
		{"answered", func(i *Instance) bool { i.onAnswered(); return false },
			map[state]outcome{restoring: {running, false}}},
		{"unknown to the shim", (*Instance).onUnknown,
			map[state]outcome{restoring: {reaping, true}}},
		{"death", (*Instance).onDeath,
			map[state]outcome{restoring: {dead, true}, running: {dead, true}}},
		{"delete", func(i *Instance) bool { before, _ := i.onDelete(false); return before == running },
			map[state]outcome{running: {deleting, true}}},
		{"delete failed", func(i *Instance) bool { i.onDeleteFailed(); return false },
			map[state]outcome{deleting: {running, false}}},
		{"deleted", func(i *Instance) bool { i.onDeleted(); return false },
			map[state]outcome{deleting: {reaping, false}}},
		{"forgotten", func(i *Instance) bool { i.m.forget(i); return false },
			map[state]outcome{restoring: {gone, false}, deleting: {gone, false}, reaping: {gone, false}, dead: {gone, false}}},
	} {
		for _, st := range allStates {
			t.Run(fmt.Sprintf("%s/%s", c.event, st), func(t *testing.T) {
				i := newInstance(memManager(t), noLayout, KindTask, testNamespace, "c1", st)
				want, ok := c.leads[st]
				if !ok {
					want = outcome{st, false}
				}
				if c.event == "forgotten" && (st == launching || st == running) {
					require.Panics(t, func() { c.fire(i) }, "only what has no task is forgotten")
					return
				}
				_, changed := i.watch()
				require.Equal(t, want.yours, c.fire(i))
				got, _ := i.watch()
				require.Equal(t, want.next, got)
				require.Equal(t, want.next != st, isDone(changed), "who watches is woken exactly by a change")
			})
		}
	}
}

func TestWhatStatesMean(t *testing.T) {
	for _, c := range []struct {
		st             state
		listed, ending bool
	}{
		{launching, false, false}, {restoring, true, false}, {running, true, false}, {deleting, true, true},
		{reaping, false, true}, {dead, false, true}, {gone, false, true},
	} {
		require.Equal(t, c.listed, c.st.listed(), "%s", c.st)
		require.Equal(t, c.ending, c.st.ending(), "%s", c.st)
		require.NotEmpty(t, c.st.String())
	}
}

// TestProcessEvents goes through every event in every state of a process.
func TestProcessEvents(t *testing.T) {
	shimtest.CheckLeaks(t)
	all := []processState{connecting, connected, unresponsive, ended}
	for _, c := range []struct {
		event string
		fire  func(*testing.T, *Process, *link)
		leads map[processState]processState
		wakes []processState // those who watch it, without another state
	}{
		{"connected", func(t *testing.T, p *Process, l *link) {
			before := p.state
			err := p.onConnected(l.conn)
			require.Equal(t, before == ended, err != nil, "%v", err)
			// A silent shim is silent until it has answered, whatever becomes of its connection.
		}, map[processState]processState{connecting: connected}, []processState{unresponsive}},
		{"lost", func(_ *testing.T, p *Process, _ *link) { p.lost() },
			map[processState]processState{connected: connecting}, []processState{unresponsive}},
		{"silent", func(_ *testing.T, p *Process, l *link) { p.silent(l) },
			map[processState]processState{connected: unresponsive}, nil},
		{"silent on another connection", func(_ *testing.T, p *Process, _ *link) { p.silent(&link{}) }, nil, nil},
		{"answered", func(_ *testing.T, p *Process, l *link) { p.answered(l) },
			map[processState]processState{unresponsive: connected}, nil},
		{"answered on another connection", func(_ *testing.T, p *Process, _ *link) { p.answered(&link{}) }, nil, nil},
		{"ended", func(_ *testing.T, p *Process, _ *link) { p.end() },
			map[processState]processState{connecting: ended, connected: ended, unresponsive: ended}, nil},
		{"died", func(_ *testing.T, p *Process, _ *link) { p.die("test") },
			map[processState]processState{connecting: ended, connected: ended, unresponsive: ended}, nil},
	} {
		for _, st := range all {
			t.Run(fmt.Sprintf("%s/%d", c.event, st), func(t *testing.T) {
				s := newMemShim(t)
				p := newProcess(memManager(t), testEndpoint)
				l := &link{conn: s.connect()}
				task, err := l.conn.Task(3)
				require.NoError(t, err)
				l.task = task
				p.state = st
				if st == connected || st == unresponsive {
					p.link = l
				}
				want, ok := c.leads[st]
				if !ok {
					want = st
				}
				_, _, changed := p.snapshot()
				c.fire(t, p, l)
				got, now, _ := p.snapshot()
				_ = got
				require.Equal(t, want, now)
				require.Equal(t, want != st || slices.Contains(c.wakes, st), isDone(changed))
				if now == ended {
					require.Error(t, p.join(memInstance(p.m, "c9", running), origin{}), "nobody joins what has ended")
				}
			})
		}
	}
}

// TestForgetIsByIdentity: a late end of an earlier instance does not evict its successor.
func TestForgetIsByIdentity(t *testing.T) {
	shimtest.CheckLeaks(t)
	m := memManager(t)
	first, second := memInstance(m, "c1", reaping), memInstance(m, "c1", running)
	m.instances[second.key()] = second
	m.forget(first)
	require.Same(t, second, m.find(testNamespace, "c1"))
	st, _ := first.watch()
	require.Equal(t, gone, st)

	third := memInstance(m, "c1", running)
	endFirst, endThird := m.stayReachable(first), m.stayReachable(third)
	require.ElementsMatch(t, []*Instance{first, second, third}, m.reachable(testNamespace, "c1"), "each id may have several that left")
	endFirst()
	require.ElementsMatch(t, []*Instance{second, third}, m.reachable(testNamespace, "c1"))
	endThird()
	require.Empty(t, m.leaving)

	p, q := newProcess(m, testEndpoint), newProcess(m, testEndpoint)
	m.processes[testEndpoint.String()] = q
	p.end()
	require.Same(t, q, m.processes[testEndpoint.String()])
}
