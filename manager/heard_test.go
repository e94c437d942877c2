// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"testing/synctest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestExitEventFasterThanStart whose answer names another pid than Create's did.
func TestExitEventFasterThanStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, s := createdTask(t, memManager(t))
		s.stall("Start")
		started := make(chan error, 1)
		go func() { started <- (&Task{i: i}).Start(t.Context()) }()
		synctest.Wait()
		i.onExitEvent("", exitOf(99, 1)) // of an earlier task
		i.onExitEvent("", exitOf(ownPid(), 5))
		require.Nil(t, i.ledger.Exit(""), "whose it is, is not known yet")
		s.resume("Start")
		require.NoError(t, <-started)
		require.NotNil(t, i.ledger.Exit(""))
		require.EqualValues(t, 5, i.ledger.Exit("").Status)
		require.Equal(t, ownPid(), i.ledger.Exit("").Pid)
		require.Empty(t, i.ledger.Untold())
	})
}

// TestExitEventOfAStartWithoutAnAnswer is known as soon as the shim says by another answer which pid is its task's.
func TestExitEventOfAStartWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, s := createdTask(t, memManager(t))
		s.fail("Start", codes.Unavailable, "no answer")
		require.Error(t, (&Task{i: i}).Start(t.Context()))
		e := exitOf(200, 5)
		i.onExitEvent("", e)
		i.onDeleteEvent(200)
		learnState(i, &taskapi.StateResponse{
			Pid: 200, Status: tasktypes.Status_STOPPED, ExitStatus: 5, ExitedAt: timestamppb.New(e.At),
		})
		require.Equal(t, uint32(200), i.ledger.Exit("").Pid)
		require.True(t, i.ledger.Exit("").Told)
		require.True(t, i.ledger.Exit("").DeleteTold)
	})
}

// TestWaitFasterThanStart: the Wait is answered when Create's pid is still the only one that is known. What is on
// record is what was told.
func TestWaitFasterThanStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, s := createdTask(t, memManager(t))
		s.stall("Start")
		started := make(chan error, 1)
		go func() { started <- (&Task{i: i}).Start(t.Context()) }()
		at := time.Now()
		s.exitWith(5, at)
		ends(t, startWait(t.Context(), i, ""), 5)
		synctest.Wait()
		e := exitOf(ownPid(), 5)
		e.At = at
		i.onExitEvent("", e)
		s.resume("Start")
		require.NoError(t, <-started)
		require.Equal(t, ownPid(), i.ledger.Exit("").Pid)
		require.Empty(t, i.ledger.Untold())
	})
}

// TestExitEventWhileRestoring of a process whose pid the last daemon did not come to record.
func TestExitEventWhileRestoring(t *testing.T) {
	shimtest.CheckLeaks(t)
	for _, c := range []struct {
		name     string
		answered uint32
	}{{"the shim answers with the pid", 200}, {"the shim answers without a pid", 0}} {
		t.Run(c.name, func(t *testing.T) {
			m := memManager(t)
			i, _ := memTask(t, m, "c1", 0)
			putInto(i, life.Restoring)
			at := timestamppb.Now()
			e := exitEvent("c1", "c1", 200, 5)
			e.ExitedAt = at
			hear(t, m, testNamespace, exitEvent("c1", "c1", 199, 4)) // of an earlier task
			hear(t, m, testNamespace, e)
			require.Nil(t, i.ledger.Exit(""))
			learnState(i, &taskapi.StateResponse{
				Pid: c.answered, Status: tasktypes.Status_STOPPED, ExitStatus: 5, ExitedAt: at,
			})
			require.EqualValues(t, 5, i.ledger.Exit("").Status)
			require.Equal(t, uint32(200), i.ledger.Exit("").Pid)
			require.Empty(t, i.ledger.Untold(), "or it is told a second time")
		})
	}
}

// TestExitEventWithoutAPidOnRecord is the task's where its shim never answers with one.
func TestExitEventWithoutAPidOnRecord(t *testing.T) {
	shimtest.CheckLeaks(t)
	m := memManager(t)
	i, _ := memTask(t, m, "c1", 0)
	hear(t, m, testNamespace, exitEvent("c1", "c1", 200, 5))
	require.EqualValues(t, 5, i.ledger.Exit("").Status)
	require.Equal(t, uint32(200), i.ledger.Exit("").Pid)
}

// TestExecThatEndsBeforeItsStartIsAnswered is told once, in whatever order the answers and the event come.
func TestExecThatEndsBeforeItsStartIsAnswered(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps []string
	}{
		{"wait, event, start", []string{"wait", "event", "start"}},
		{"event, wait, start", []string{"event", "wait", "start"}},
		{"wait, start, event", []string{"wait", "start", "event"}},
		{"event, start, wait", []string{"event", "start", "wait"}},
		{"start, event, wait", []string{"start", "event", "wait"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := answeredTask(t, memManager(t))
				i.ledger.ExecAdded("e2")
				for _, step := range c.steps {
					switch step {
					case "wait":
						ends(t, startWait(t.Context(), i, "e2"), 3)
					case "event":
						i.onExitEvent("e2", exitOf(79, 3))
					case "start":
						i.ledger.ExecStarted("e2", 79)
					}
				}
				time.Sleep(10 * time.Minute)
				require.Equal(t, uint32(79), i.ledger.Exit("e2").Pid)
				require.EqualValues(t, 3, i.ledger.Exit("e2").Status)
				require.True(t, i.ledger.Exit("e2").Told)
				require.Zero(t, i.ledger.Exit("e2").Tries, "told once, by the shim")
			})
		})
	}
}
