// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
)

// startedExec is an exec "e1" with pid 78 of a task whose shim deletes it with exit 3.
func startedExec(t *testing.T, m *ShimManager) (*Exec, *memShim) {
	t.Helper()
	s := newMemShim(t)
	i, p := memTask(t, m, "c1", 77)
	require.NoError(t, p.OnConnected(s.connect()))
	i.ledger.ExecAdded("e1")
	i.ledger.ExecStarted("e1", 78)
	s.say("Delete", &taskapi.DeleteResponse{Pid: 78, ExitStatus: 3, ExitedAt: timestamppb.Now()})
	return &Exec{task: &Task{i: i}, id: "e1"}, s
}

// leaveDelete begins a Delete and leaves it while the shim has it in hand.
func leaveDelete(t *testing.T, e *Exec, s *memShim) {
	t.Helper()
	s.stall("Delete")
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := e.Delete(ctx)
		left <- err
	}()
	synctest.Wait()
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
}

// TestExecDeleteWhoseCallerLeft is done, and the exit is there for the retry, which comes after it or while it is under
// way.
func TestExecDeleteWhoseCallerLeft(t *testing.T) {
	for _, during := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := memManager(t)
			e, s := startedExec(t, m)
			leaveDelete(t, e, s)
			if during {
				time.AfterFunc(time.Second, func() { s.resume("Delete") })
			} else {
				s.resume("Delete")
				synctest.Wait()
				s.fail("Delete", codes.NotFound, "process e1 does not exist")
				s.fail("State", codes.NotFound, "process e1 does not exist")
				p, err := e.task.Process(t.Context(), "e1")
				require.NoError(t, err, "a client looks the exec up and asks for its state before it deletes")
				st, err := p.State(t.Context())
				require.NoError(t, err)
				require.Equal(t, runtime.StoppedStatus, st.Status)
				require.EqualValues(t, 3, st.ExitStatus)
			}
			exit, err := e.Delete(t.Context())
			require.NoError(t, err)
			require.EqualValues(t, 3, exit.Status)
			require.EqualValues(t, 78, exit.Pid)
			require.Equal(t, 1, s.count("Delete"))
			s.fail("Delete", codes.NotFound, "process e1 does not exist")
			_, err = e.Delete(t.Context())
			require.True(t, errdefs.IsNotFound(err), "it was given: %v", err)
		})
	}
}

// TestExecDeleteWhoseAnswerIsLost with the daemon, or with the connection: the shim does not know the exec any more,
// the record its exit.
func TestExecDeleteWhoseAnswerIsLost(t *testing.T) {
	for _, c := range []struct {
		name  string
		after time.Duration
		want  error
	}{
		{"the exit is known", 0, nil},
		{"the exit is on its way", ledger.InFlight / 2, nil},
		{"nothing is known of the exit", time.Hour, errdefs.ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, s := startedExec(t, memManager(t))
				s.fail("Delete", codes.NotFound, "process e1 does not exist")
				time.AfterFunc(c.after, func() { e.task.i.onExitEvent("e1", exitOf(78, 4)) })
				if c.after == 0 {
					synctest.Wait()
					time.Sleep(time.Millisecond)
				}
				exit, err := e.Delete(t.Context())
				if c.want != nil {
					require.ErrorIs(t, err, c.want)
					require.False(t, e.task.i.ledger.ExecOf("e1").IsKnown(), "what the shim does not know is not listed")
					return
				}
				require.NoError(t, err)
				require.EqualValues(t, 4, exit.Status)
			})
		})
	}
}

// TestExecOfAReusedID: a late answer to the Delete of the earlier exec does not touch its successor.
func TestExecOfAReusedID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := startedExec(t, memManager(t))
		leaveDelete(t, e, s)
		i := e.task.i
		i.ledger.ExecAdded("e1") // the shim has deleted the first, else it would have refused this one
		i.ledger.ExecStarted("e1", 79)
		s.resume("Delete")
		synctest.Wait()
		require.EqualValues(t, 79, i.ledger.Pid("e1"))
		require.Nil(t, i.ledger.Exit("e1"))
		require.False(t, i.execWasDeleted("e1"))
		i.onExitEvent("e1", exitOf(79, 0))
		require.NotNil(t, i.ledger.Exit("e1"))
	})
}

// TestExitOfADeletedExec is not told by the manager: its client was answered, or does not care.
func TestExitOfADeletedExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := startedExec(t, memManager(t))
		leaveDelete(t, e, s)
		s.resume("Delete")
		time.Sleep(10 * time.Minute)
		require.NotNil(t, e.task.i.ledger.Exit("e1"))
		require.Zero(t, e.task.i.ledger.Exit("e1").Tries)
		requireNoLoop(t, "replay")
	})
}

// TestStateOfAnExecWhileTheShimIsSilent is Stopped once the exit is known.
func TestStateOfAnExecWhileTheShimIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := startedExec(t, memManager(t))
		s.fail("State", codes.Unavailable, "silent")
		_, err := e.State(t.Context())
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		e.task.i.onExitEvent("e1", exitOf(78, 4))
		st, err := e.State(t.Context())
		require.NoError(t, err)
		require.Equal(t, runtime.StoppedStatus, st.Status)
		require.EqualValues(t, 4, st.ExitStatus)
	})
}

// untimed are the ways in which shims do not say when a process ended. Clients convert times to Unix nanoseconds.
var untimed = map[string]*timestamppb.Timestamp{
	"none": nil, "year 1": timestamppb.New(time.Time{}), "1970": {},
	"year 9999": {Seconds: 253402300799}, "invalid": {Seconds: 1, Nanos: -1},
}

// TestStoppedWithoutATime is answered with the time of first sight, which stays: for State, for the exit that is learnt
// later, and after that.
func TestStoppedWithoutATime(t *testing.T) {
	for name, at := range untimed {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, s := startedExec(t, memManager(t))
				i := e.task.i
				stopped := &taskapi.StateResponse{Pid: 77, Status: tasktypes.Status_STOPPED, ExitStatus: 7,
					ExitedAt: at}
				s.say("State", stopped)
				ask := map[string]func(context.Context) (runtime.State, error){"": e.task.State, "e1": e.State}
				first := time.Now()
				for range 3 {
					for id, state := range ask {
						st, err := state(t.Context())
						require.NoError(t, err, id)
						require.Equal(t, runtime.StoppedStatus, st.Status, id)
						require.EqualValues(t, 7, st.ExitStatus, id)
						require.True(t, st.ExitedAt.Equal(first), "%q: %s", id, st.ExitedAt)
					}
					time.Sleep(time.Second)
				}
				require.Nil(t, i.ledger.Exit(""), "the shim may not have seen the exit yet")
				s.exit = &taskapi.WaitResponse{ExitStatus: 8, ExitedAt: at}
				close(s.exits)
				ends(t, startWait(t.Context(), i, ""), 8)
				ends(t, startWait(t.Context(), i, "e1"), 8)
				time.Sleep(time.Second)
				for id, state := range ask {
					st, err := state(t.Context())
					require.NoError(t, err, id)
					require.EqualValues(t, 8, st.ExitStatus, id)
					require.True(t, st.ExitedAt.Equal(first), "%q: %s", id, st.ExitedAt)
				}
			})
		})
	}
}

// TestExitWithoutATime that was never seen in a State is of the moment at which it is learnt.
func TestExitWithoutATime(t *testing.T) {
	for name, at := range untimed {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := memManager(t)
				e, s := startedExec(t, m)
				time.Sleep(time.Second)
				s.say("Delete", &taskapi.DeleteResponse{Pid: 78, ExitStatus: 3, ExitedAt: at})
				exit, err := e.Delete(t.Context())
				require.NoError(t, err)
				require.True(t, exit.Timestamp.Equal(time.Now()), "%s", exit.Timestamp)
				event := exitEvent("c1", "c1", 77, 3)
				event.ExitedAt = at
				hear(t, m, testNamespace, event)
				require.True(t, e.task.i.ledger.Exit("").At.Equal(time.Now()))
				s.exitWith(3, time.Time{})
				got, err := e.task.i.wait(t.Context(), "of an earlier daemon")
				require.NoError(t, err)
				require.True(t, got.Timestamp.Equal(time.Now()), "%s", got.Timestamp)
			})
		})
	}
}

// TestStoppedWithoutATimeDuringDowntime is found out by a Wait, and told: nobody else would.
func TestStoppedWithoutATimeDuringDowntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := startedExec(t, memManager(t))
		i := e.task.i
		putInto(i, life.Restoring)
		s.say("State", &taskapi.StateResponse{Pid: 77, Status: tasktypes.Status_STOPPED})
		s.exit = &taskapi.WaitResponse{ExitStatus: 9}
		close(s.exits)
		require.True(t, i.ask(new(string)))
		time.Sleep(10 * time.Minute)
		for _, id := range []string{"", "e1"} {
			require.NotNil(t, i.ledger.Exit(id), "%q", id)
			require.EqualValues(t, 9, i.ledger.Exit(id).Status, "%q", id)
			require.Equal(t, 1, i.ledger.Exit(id).Tries, "%q", id)
		}
	})
}
