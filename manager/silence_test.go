// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// connectDeadline is how long a shim may be without a connection, or leave a Connect unanswered, before it counts as
// silent.
var connectDeadline = shimclient.DefaultDeadlines()["Connect"]

// otherProcess is a living process that stands for a shim's.
func otherProcess(t *testing.T) shimclient.ProcessID {
	t.Helper()
	id, err := shimclient.LookupProcess(shimtest.Child(t, exec.Command("sleep", "1000000")).Process.Pid)
	require.NoError(t, err)
	return id
}

// TestSilentWithoutAConnection: a living shim that cannot be connected to is answered for as one that is connected
// and does not answer.
func TestSilentWithoutAConnection(t *testing.T) {
	shim := otherProcess(t)
	synctest.Test(t, func(t *testing.T) {
		m := memManager(t, func(c *shimproc.Config) { c.Begin = func(f func()) { c.Spawn(f) } })
		i, p := memTaskFrom(t, m, "c1", ownPid(), shimproc.Origin{Launched: true, Pid: shim})
		created := joining(t, m, p, "c2")
		created.onCreated(ownPid(), runtime.IO{})
		task := &Task{i: i}

		before := time.Now()
		_, err := task.Pids(t.Context())
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		require.ErrorContains(t, err, "cannot be reached since")
		require.Equal(t, connectDeadline, time.Since(before), "it waits for the verdict, not for the load timeout")

		before = time.Now()
		for range 100 {
			_, err = task.Pids(t.Context())
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			_, err = task.Stats(t.Context())
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
		}
		st, err := task.State(t.Context())
		require.NoError(t, err)
		require.Equal(t, runtime.RunningStatus, st.Status)
		_, err = created.listedState(t.Context())
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		require.Zero(t, time.Since(before), "nobody waits for a shim that is known to be silent")

		require.True(t, errdefs.IsUnavailable(task.Pause(t.Context())))
		require.Equal(t, timeout.Get(shimproc.TimeoutLoad), time.Since(before), "what changes something waits")
		require.Equal(t, life.Running, stateOf(i))
		require.False(t, p.IsDead())
	})
}

// TestSilenceOutlastsTheConnection: that a connection is made again is no answer. The kernel accepts for a stopped
// process too.
func TestSilenceOutlastsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		i, p := memTask(t, m, "c1", ownPid())
		task := &Task{i: i}
		first := s.connect()
		require.NoError(t, p.OnConnected(first))
		s.stall("Pids", "Connect")
		_, err := task.Pids(t.Context())
		require.ErrorIs(t, err, shimclient.ErrNoAnswer)
		time.Sleep(connectDeadline)
		synctest.Wait()
		require.Equal(t, shimproc.Unresponsive, processStateOf(p))
		since := p.Status().Since

		for range 5 {
			time.Sleep(time.Minute)
			require.NoError(t, first.Close())
			p.OnLost()
			require.Equal(t, shimproc.Unresponsive, processStateOf(p))
			first = s.connect()
			require.NoError(t, p.OnConnected(first))
			before := time.Now()
			_, err = task.Pids(t.Context())
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			require.Zero(t, time.Since(before))
			require.Equal(t, since, p.Status().Since, "it has been silent all the time")
		}
		s.resume("Pids", "Connect")
		synctest.Wait()
		require.Equal(t, shimproc.Connected, processStateOf(p))
		_, err = task.Pids(t.Context())
		require.NoError(t, err)
	})
}

// TestEscalateHasOneClock: a shim is ended when it has been silent for as long as config allows, whether it was
// connected meanwhile or not.
func TestEscalateHasOneClock(t *testing.T) {
	for _, c := range []struct {
		name      string
		reconnect bool
	}{{"connected again and again", true}, {"never connected", false}} {
		t.Run(c.name, func(t *testing.T) {
			shim := otherProcess(t)
			synctest.Test(t, func(t *testing.T) {
				s := newMemShim(t)
				m := memManager(t, func(c *shimproc.Config) { c.EscalateAfter = 10 * time.Minute })
				_, p := memTaskFrom(t, m, "c1", ownPid(), shimproc.Origin{Launched: true, Pid: shim})
				s.stall("Connect")
				p.OnUnreachable()
				for range 9 {
					time.Sleep(time.Minute)
					if !c.reconnect {
						continue
					}
					conn := s.connect()
					require.NoError(t, p.OnConnected(conn))
					time.Sleep(time.Second)
					require.NoError(t, conn.Close())
					p.OnLost()
				}
				require.True(t, shim.Alive(), "not before")
				time.Sleep(time.Minute + time.Second) // for its stacks
				require.NoError(t, shim.Wait(t.Context()))
				for _, st, changed := p.Watch(); st != shimproc.Ended; _, st, changed = p.Watch() {
					<-changed
				}
				require.True(t, p.IsDead())
			})
		})
	}
}

// TestEscalateSparesWhatAnswers in time.
func TestEscalateSparesWhatAnswers(t *testing.T) {
	shim := otherProcess(t)
	synctest.Test(t, func(t *testing.T) {
		s := newMemShim(t)
		m := memManager(t, func(c *shimproc.Config) { c.EscalateAfter = time.Minute })
		_, p := memTaskFrom(t, m, "c1", ownPid(), shimproc.Origin{Launched: true, Pid: shim})
		for range 3 {
			p.OnUnreachable()
			time.Sleep(59 * time.Second)
			conn := s.connect()
			require.NoError(t, p.OnConnected(conn))
			synctest.Wait()
			require.Equal(t, shimproc.Connected, processStateOf(p))
			require.NoError(t, conn.Close())
			p.OnLost()
		}
		time.Sleep(time.Hour)
		require.True(t, shim.Alive(), "a lost connection alone is not silence")
	})
}
