// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// TestBreaker: one call without an answer opens nothing, only a Connect that stays unanswered too; an answer closes it
// again.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, i, p := connectedTask(t, "c1", ownPid())
		task := &Task{i: i}

		s.stall("Pids")
		_, err := task.Pids(t.Context())
		require.ErrorIs(t, err, shimclient.ErrNoAnswer)
		synctest.Wait()
		require.Equal(t, shimproc.Connected, processStateOf(p), "the Connect was answered")
		require.Equal(t, 1, s.count("Connect"))

		s.stall("Connect")
		_, err = task.Pids(t.Context())
		require.True(t, errdefs.IsDeadlineExceeded(err), "%v", err)
		synctest.Wait()
		require.Equal(t, shimproc.Connected, processStateOf(p), "one unanswered call is not enough")
		time.Sleep(shimclient.DefaultDeadlines()["Connect"] + time.Millisecond)
		synctest.Wait()
		require.Equal(t, shimproc.Unresponsive, processStateOf(p))

		// Nobody waits for a shim that is known to be silent, and nothing of its containers is touched.
		before := time.Now()
		_, err = task.Pids(t.Context())
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		_, err = task.Stats(t.Context())
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		st, err := task.State(t.Context())
		require.NoError(t, err)
		require.Equal(t, runtime.State{Status: runtime.RunningStatus, Pid: ownPid()}, st)
		require.Zero(t, s.count("State"), "it is answered from the record")
		require.Zero(t, time.Since(before))
		ist, _ := i.watch()
		require.Equal(t, life.Running, ist)

		// What changes something waits for a while: the shim may have been merely slow.
		require.True(t, errdefs.IsUnavailable(task.Pause(t.Context())))
		require.Equal(t, timeout.Get(shimproc.TimeoutLoad), time.Since(before))
		require.Zero(t, s.count("Pause"))

		// A kill goes out, and any answer closes the breaker.
		require.NoError(t, task.Kill(t.Context(), 9, false))
		require.Equal(t, 1, s.count("Kill"))
		require.Equal(t, shimproc.Connected, processStateOf(p))

		s.resume("Connect", "Pids")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		_, err = task.Pids(t.Context())
		require.NoError(t, err)
		asked := s.count("Connect")
		time.Sleep(time.Minute)
		require.Equal(t, asked, s.count("Connect"), "a shim that answers is not probed")
	})
}

// TestCallersDeadline: that a caller has less patience is worth one Connect, and no more.
func TestCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, i, p := connectedTask(t, "c1", 0)
		s.stall("Pids")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := (&Task{i: i}).Pids(ctx)
		require.True(t, errdefs.IsDeadlineExceeded(err), "%v", err)
		time.Sleep(time.Minute)
		require.LessOrEqual(t, s.count("Connect"), 1)
		require.Equal(t, shimproc.Connected, processStateOf(p))
	})
}

// TestAnErrorIsAnAnswer: a shim that refuses Connect has answered.
func TestAnErrorIsAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, i, p := connectedTask(t, "c1", 0)
		s.fail("Connect", codes.Internal, "no mood")
		s.stall("Pids")
		_, err := (&Task{i: i}).Pids(t.Context())
		require.ErrorIs(t, err, shimclient.ErrNoAnswer)
		time.Sleep(time.Minute)
		require.Equal(t, shimproc.Connected, processStateOf(p))
		require.Equal(t, 1, s.count("Connect"))
	})
}

// TestStateOfASilentShim: what cannot be stood for is Unavailable, never a made-up state and never NotFound.
func TestStateOfASilentShim(t *testing.T) {
	for _, c := range []struct {
		name string
		pid  uint32
		exit bool
		ok   bool
	}{
		{"its process lives", ownPid(), false, true},
		{"pid not known", 0, false, false},
		{"exit on record", 0, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, i, p := connectedTask(t, "c1", c.pid)
				s.stall("State", "Connect")
				if c.exit {
					i.ledger.LearnExit(exitOf(4321, 3))
				}
				task := &Task{i: i}
				if !c.exit {
					_, err := task.State(t.Context()) // opens the breaker
					require.Equal(t, c.ok, err == nil, "%v", err)
					time.Sleep(10 * time.Second)
					require.Equal(t, shimproc.Unresponsive, processStateOf(p))
				} else {
					fallSilent(p)
				}
				st, err := task.State(t.Context())
				switch {
				case c.exit:
					require.NoError(t, err)
					require.Equal(t, runtime.StoppedStatus, st.Status)
					require.Equal(t, uint32(3), st.ExitStatus)
				case c.ok:
					require.NoError(t, err)
					require.Equal(t, runtime.RunningStatus, st.Status)
				default:
					require.True(t, errdefs.IsUnavailable(err), "%v", err)
					require.ErrorContains(t, err, "since", "it says since when")
				}
				s.resume("State", "Connect")
			})
		})
	}
}

// TestUseWaitsForTheVerdict: a call on a process that is being reconnected waits, then says Unavailable; a dead one is
// NotFound.
func TestUseWaitsForTheVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		i, p := memTask(t, m, "c1", 0)
		task := &Task{i: i}

		_, err := task.Pids(t.Context())
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		_, err = task.Pids(ctx)
		require.ErrorIs(t, err, context.Canceled)

		conn := s.connect()
		time.AfterFunc(time.Second, func() { _ = p.OnConnected(conn) })
		_, err = task.Pids(t.Context())
		require.NoError(t, err)

		p.OnLost()
		time.AfterFunc(time.Second, p.End)
		_, err = task.Pids(t.Context())
		require.True(t, errdefs.IsNotFound(err), "%v", err)
	})
}
