// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

var allStates = []state{launching, restoring, running, deleting, reaping, dead, gone}

// TestInstanceEvents goes through every event in every state. What is not in an event's table changes nothing and asks
// for nothing.
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
			map[state]outcome{restoring: {gone, false}, deleting: {gone, false}, reaping: {gone, false},
				dead: {gone, false}}},
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
				require.Equal(t, want.next != st, isClosed(changed), "who watches is woken exactly by a change")
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
	require.ElementsMatch(t, []*Instance{first, second, third}, m.reachable(testNamespace, "c1"),
		"each id may have several that left")
	endFirst()
	require.ElementsMatch(t, []*Instance{second, third}, m.reachable(testNamespace, "c1"))
	endThird()
	require.Empty(t, m.leaving)
}
