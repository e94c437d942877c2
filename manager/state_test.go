// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

var allStates = []life.State{life.Launching, life.Restoring, life.Running, life.Deleting, life.Reaping, life.Dead, life.Gone}

// TestInstanceEvents goes through every event in every state. What is not in an event's table changes nothing and asks
// for nothing.
func TestInstanceEvents(t *testing.T) {
	shimtest.CheckLeaks(t)
	type outcome struct {
		next  life.State
		yours bool // the caller is to go on
	}
	for _, c := range []struct {
		event string
		fire  func(*Instance) bool
		leads map[life.State]outcome
	}{
		{"created", func(i *Instance) bool { i.onCreated(0, runtime.IO{}); return false },
			map[life.State]outcome{life.Launching: {life.Running, false}}},
		{"launch failed", (*Instance).onLaunchFailed,
			map[life.State]outcome{life.Launching: {life.Reaping, true}}},
		{"answered", func(i *Instance) bool { i.onAnswered(); return false },
			map[life.State]outcome{life.Restoring: {life.Running, false}}},
		{"unknown to the shim", (*Instance).onUnknown,
			map[life.State]outcome{life.Restoring: {life.Reaping, true}}},
		{"death", (*Instance).onDeath,
			map[life.State]outcome{life.Restoring: {life.Dead, true}, life.Running: {life.Dead, true}}},
		{"delete", func(i *Instance) bool { before, _ := i.onDelete(false); return before == life.Running },
			map[life.State]outcome{life.Running: {life.Deleting, true}}},
		{"delete failed", func(i *Instance) bool { i.onDeleteFailed(); return false },
			map[life.State]outcome{life.Deleting: {life.Running, false}}},
		{"deleted", func(i *Instance) bool { i.onDeleted(); return false },
			map[life.State]outcome{life.Deleting: {life.Reaping, false}}},
		{"forgotten", func(i *Instance) bool { i.m.forget(i); return false },
			map[life.State]outcome{life.Restoring: {life.Gone, false}, life.Deleting: {life.Gone, false}, life.Reaping: {life.Gone, false},
				life.Dead: {life.Gone, false}}},
	} {
		for _, st := range allStates {
			t.Run(fmt.Sprintf("%s/%s", c.event, st), func(t *testing.T) {
				i := newInstance(memManager(t), noLayout, life.Task, testNamespace, "c1", st)
				want, ok := c.leads[st]
				if !ok {
					want = outcome{st, false}
				}
				if c.event == "forgotten" && (st == life.Launching || st == life.Running) {
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
		st             life.State
		listed, ending bool
	}{
		{life.Launching, false, false}, {life.Restoring, true, false}, {life.Running, true, false}, {life.Deleting, true, true},
		{life.Reaping, false, true}, {life.Dead, false, true}, {life.Gone, false, true},
	} {
		require.Equal(t, c.listed, c.st.IsListed(), "%s", c.st)
		require.Equal(t, c.ending, c.st.IsEnding(), "%s", c.st)
		require.NotEmpty(t, c.st.String())
	}
}

// TestForgetIsByIdentity: a late end of an earlier instance does not evict its successor.
func TestForgetIsByIdentity(t *testing.T) {
	shimtest.CheckLeaks(t)
	m := memManager(t)
	first, second := memInstance(m, "c1", life.Reaping), memInstance(m, "c1", life.Running)
	m.instances[second.key()] = second
	m.forget(first)
	require.Same(t, second, m.find(testNamespace, "c1"))
	st, _ := first.watch()
	require.Equal(t, life.Gone, st)

	third := memInstance(m, "c1", life.Running)
	endFirst, endThird := m.stayReachable(first), m.stayReachable(third)
	require.ElementsMatch(t, []*Instance{first, second, third}, m.reachable(testNamespace, "c1"),
		"each id may have several that left")
	endFirst()
	require.ElementsMatch(t, []*Instance{second, third}, m.reachable(testNamespace, "c1"))
	endThird()
	require.Empty(t, m.leaving)
}
