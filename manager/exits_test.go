// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"testing/synctest"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestLateEvents: what is still told of an earlier task with the same id does not touch its successor.
func TestLateEvents(t *testing.T) {
	shimtest.CheckLeaks(t)
	m := memManager(t)
	i, _ := memTask(t, m, "c1", 200)
	i.ledger.ExecAdded("e1")
	i.ledger.ExecStarted("e1", 201)

	hear(t, m, testNamespace, exitEvent("c1", "c1", 100, 1))
	hear(t, m, testNamespace, exitEvent("c1", "e1", 101, 1))
	hear(t, m, "other", exitEvent("c1", "c1", 200, 1))
	require.Nil(t, i.ledger.Exit(""))
	require.Nil(t, i.ledger.Exit("e1"))

	hear(t, m, testNamespace, exitEvent("c1", "e1", 201, 3))
	hear(t, m, testNamespace, exitEvent("c1", "c1", 200, 2))
	require.Equal(t, uint32(2), i.ledger.Exit("").Status)
	require.Equal(t, uint32(3), i.ledger.Exit("e1").Status)
	require.True(t, i.ledger.Exit("").Told)
	require.True(t, i.ledger.Exit("e1").Told)

	hear(t, m, testNamespace, &apievents.TaskDelete{ContainerID: "c1", Pid: 100})
	hear(t, m, testNamespace, &apievents.TaskDelete{ContainerID: "c1", ID: "e1", Pid: 201})
	require.False(t, i.ledger.Exit("").DeleteTold)
	hear(t, m, testNamespace, &apievents.TaskDelete{ContainerID: "c1", Pid: 200})
	require.True(t, i.ledger.Exit("").DeleteTold)
}

// TestFirstExitStays: State, Wait, Delete and events agree since the first exit that is learnt is the exit.
func TestFirstExitStays(t *testing.T) {
	shimtest.CheckLeaks(t)
	i, _ := memTask(t, memManager(t), "c1", 200)
	i.ledger.LearnExit(exitOf(0, 7))
	i.ledger.LearnExit(exitOf(200, 8))
	i.onExitEvent("", exitOf(200, 9))
	i.ledger.LearnDeath(exitOf(200, 255))
	e := i.ledger.Exit("")
	require.Equal(t, uint32(7), e.Status)
	require.Equal(t, uint32(200), e.Pid, "the pid that is known")
	require.True(t, e.Told, "though that it was told is remembered")
}

// TestEventBeforeItsPid: an exit may be heard before the answer of the Create or Start that tells whose it is.
func TestEventBeforeItsPid(t *testing.T) {
	shimtest.CheckLeaks(t)
	m := memManager(t)
	i := memInstance(m, "c1", life.Launching)
	m.instances[i.key()] = i
	hear(t, m, testNamespace, exitEvent("c1", "c1", 100, 1)) // of an earlier task
	hear(t, m, testNamespace, exitEvent("c1", "c1", 200, 2))
	require.Nil(t, i.ledger.Exit(""))
	i.onCreated(200, runtime.IO{})
	require.Equal(t, uint32(2), i.ledger.Exit("").Status)
	require.True(t, i.ledger.Exit("").Told)

	i.ledger.ExecAdded("e1")
	hear(t, m, testNamespace, exitEvent("c1", "e1", 300, 1)) // of an earlier exec
	hear(t, m, testNamespace, exitEvent("c1", "e1", 301, 3))
	require.Nil(t, i.ledger.Exit("e1"))
	i.ledger.ExecStarted("e1", 301)
	require.Equal(t, uint32(3), i.ledger.Exit("e1").Status)
	i.ledger.ForgetExec(i.ledger.ExecOf("e1"))
	i.ledger.ExecAdded("e1")
	i.ledger.ExecStarted("e1", 300)
	require.Nil(t, i.ledger.Exit("e1"), "what was heard of an earlier exec is forgotten with it")
}

// TestEventOfARestoredTask: a restore from a checkpoint has no pid before its start.
func TestEventOfARestoredTask(t *testing.T) {
	shimtest.CheckLeaks(t)
	m := memManager(t)
	i := memInstance(m, "c1", life.Launching)
	m.instances[i.key()] = i
	hear(t, m, testNamespace, exitEvent("c1", "c1", 100, 1)) // of an earlier task
	i.onCreated(0, runtime.IO{})
	require.Nil(t, i.ledger.Exit(""))
	i.learnPid(200)
	require.Nil(t, i.ledger.Exit(""))
	require.Equal(t, uint32(200), i.ledger.Pid(""))
}

// TestWhatIsNoTaskEvent is passed over.
func TestWhatIsNoTaskEvent(t *testing.T) {
	shimtest.CheckLeaks(t)
	m := memManager(t)
	i, _ := memTask(t, m, "c1", 200)
	m.heard(nil)
	m.heard(&events.Envelope{Namespace: testNamespace})
	hear(t, m, testNamespace, &apievents.TaskOOM{ContainerID: "c1"})
	hear(t, m, testNamespace, exitEvent("c2", "c2", 200, 1))
	require.Nil(t, i.ledger.Exit(""))
	box := newInstance(m, noLayout, life.Sandbox, testNamespace, "s1", life.Running)
	m.instances[box.key()] = box
	hear(t, m, testNamespace, exitEvent("s1", "s1", 1, 1))
	require.Nil(t, box.ledger.Exit(""), "a sandbox's exit is not a task's")
}

// TestPidOfAnotherLife: once the exit is known the pid is not learnt again.
func TestPidOfAnotherLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _ := memTask(t, memManager(t), "c1", 200)
		i.ledger.LearnExit(exitOf(200, 0))
		i.learnPid(ownPid())
		require.Equal(t, uint32(200), i.ledger.Pid(""))
		time.Sleep(time.Second)
		i.ledger.LearnExit(exitOf(200, 1))
		require.Zero(t, i.ledger.Exit("").Status)
	})
}
