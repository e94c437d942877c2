// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestDistrust: a shim that once did not do as it should serves what it has to the end, and then ends.
func TestDistrust(t *testing.T) {
	for _, c := range []struct {
		name  string
		share int
		spoil func(y *yard, w *warmShim)
	}{
		{name: "a Create failed", share: 2, spoil: func(y *yard, w *warmShim) {
			o := y.runcOpts("missing")
			_, err := y.tasks.Create(y.ctx, "failing", o)
			require.Error(y, err)
			y.removed("failing")
		}},
		{name: "a Delete failed", spoil: func(y *yard, _ *warmShim) {
			y.shim.Update(func(s *shimtest.Scenario) {
				s.Rules = []shimtest.Rule{{Method: "Delete", Times: 1,
					Message: "no"}}
			})
			y.kill(mustGet(y, "c1"))
			_, err := y.tasks.Delete(y.ctx, "c1")
			require.ErrorContains(y, err, "no")
		}},
		{name: "the connection was lost", spoil: func(y *yard, w *warmShim) {
			y.shim.Update(func(s *shimtest.Scenario) {
				s.Rules = []shimtest.Rule{{Method: "Stats", Times: 1,
					Drop: true}}
			})
			_, _ = mustGet(y, "c1").Stats(y.ctx)
			y.until("that was noticed", func() bool { return y.distrusted() })
		}},
		{name: "a call was not answered", spoil: func(y *yard, w *warmShim) {
			cont := y.silenceWarm(w)
			require.True(y, y.distrusted())
			cont()
			y.until("it answers again", func() bool { return processStateOf(w.p) == shimproc.Connected })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := coldPoolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100, Share: c.share})
			y.config.Deadlines = deadlines(150 * time.Millisecond)
			y.boot()
			y.pooled("c1")
			w := y.warm("c1")
			c.spoil(y, w)
			require.True(t, y.distrusted())
			require.Contains(t, []runtime.Status{runtime.RunningStatus, runtime.StoppedStatus},
				y.state(mustGet(y, "c1")).Status, "it goes on")
			y.pooled("c2")
			require.NotSame(t, w, y.warm("c2"))
			y.remove("c1")
			y.removed("c1")
			y.gone(w.dir.ID)
			require.NotContains(t, y.idle(), w.dir.ID)
			y.remove("c2")
		})
	}
}

// silenceWarm lets a warm shim fall silent and waits until that is known.
func (y *yard) silenceWarm(w *warmShim) (cont func()) {
	y.Helper()
	cont = y.stop(w.dir.ID)
	_, err := mustGet(y, "c1").Pids(y.ctx)
	require.Error(y, err)
	y.until("the breaker is open", func() bool { return processStateOf(w.p) == shimproc.Unresponsive })
	return cont
}

// TestIdleShimOfNoUse: one that is dead, stopped or gone when it would be given away costs nobody a create, and is
// ended.
func TestIdleShimOfNoUse(t *testing.T) {
	for name, spoil := range map[string]func(y *yard, w shimtest.Proc){
		"dead":    func(y *yard, p shimtest.Proc) { require.NoError(y, p.Kill()) },
		"stopped": func(y *yard, p shimtest.Proc) { y.stop(p.ID); y.aged() },
		"gone without a word": func(y *yard, p shimtest.Proc) {
			require.NoError(y, p.Signal(unix.SIGTERM))
			require.NoError(y, p.Kill())
		},
		"deaf": func(y *yard, p shimtest.Proc) {
			y.shim.Update(func(s *shimtest.Scenario) {
				s.Rules = []shimtest.Rule{{Method: "Connect", ID: p.ID,
					Hang: true}}
			})
			y.aged()
		},
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
			y.pooled("c1")
			y.spares(1)
			bad := y.idle()[0]
			spoil(y, y.shim.Daemon(bad))
			y.pooled("c2")
			require.NotEqual(t, bad, y.warm("c2").dir.ID)
			y.gone(bad)
			y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil })
			y.remove("c1")
			y.remove("c2")
		})
	}
}

// TestWarmLaunchThatFails: a binary that cannot be started for no container is started for the container, and left
// alone for some time.
func TestWarmLaunchThatFails(t *testing.T) {
	for name, s := range map[string]shimtest.Scenario{
		"version 2": replying(shimtest.Reply{Version: 2}),
		"abstract":  {Socket: shimtest.Abstract},
		"start fails once": starting(shimtest.StartFaults{
			FailAt: shimtest.AtEntry, Times: 1, FailText: `invalid id "_"`,
		}),
		"start leaves a daemon behind": starting(shimtest.StartFaults{FailAt: shimtest.AfterFork, Times: 1,
			LeaveDaemon: true}),
		"start dies after its reply": starting(shimtest.StartFaults{DieAt: shimtest.AfterReply, Times: 1}),
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, s, PoolConfig{Warm: 2, Reuse: 100})
			y.pooled("c1")
			require.Nil(t, warmth(y.instance("c1").process()))
			require.Empty(t, y.warmDirs())
			require.Equal(t, 2, y.starts())
			y.pooled("c2")
			require.Nil(t, warmth(y.instance("c2").process()))
			require.Equal(t, 3, y.starts(), "it is not tried again at once")
			require.Len(t, y.daemons(), 2)
			y.remove("c1")
			y.remove("c2")
			y.empty()
			require.Empty(t, y.shim.Procs())
		})
	}
}

// TestSpareThatCannotBeStarted: creates go on, and nobody tries again before one of them has missed a shim.
func TestSpareThatCannotBeStarted(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 2, Reuse: 100})
	y.pooled("c1")
	y.spares(1)
	y.shim.Update(func(s *shimtest.Scenario) { s.Start = shimtest.StartFaults{FailAt: shimtest.AtEntry, Times: 1} })
	y.pooled("c2")
	y.until("it was tried in vain", func() bool { return y.starts() == 3 && !y.filling() })
	require.Len(t, y.warmDirs(), 2)
	y.pooled("c3")
	y.spares(1)
	for _, id := range []string{"c1", "c2", "c3"} {
		y.remove(id)
	}
}

// TestWarmCreateCancelled while the launch hangs: nothing of it is left. Shims that wait are not blamed.
func TestWarmCreateCancelled(t *testing.T) {
	y := poolYard(t, starting(shimtest.StartFaults{HangAt: shimtest.AfterFork}), PoolConfig{Warm: 1, Reuse: 100})
	ctx, cancel := context.WithCancel(y.ctx)
	failed := make(chan error, 1)
	go func() {
		_, err := y.tasks.Create(ctx, "c1", y.runcOpts("sleep"))
		failed <- err
	}()
	y.shim.Await(shimtest.KindExec, "daemon", 1)
	cancel()
	require.ErrorIs(t, <-failed, context.Canceled)
	y.empty()
	y.noPool()
	require.Equal(t, 1, y.starts())

	y.shim.Update(func(s *shimtest.Scenario) { s.Start = shimtest.StartFaults{} })
	y.pooled("c1")
	y.spares(1)
	y.aged()
	_, err := y.tasks.Create(ctx, "c2", y.runcOpts("sleep"))
	require.ErrorIs(t, err, context.Canceled)
	y.removed("c2")
	require.Len(t, y.idle(), 1)
	y.remove("c1")
}

// TestWarmCreateWithoutAnAnswer whose caller leaves: the task that comes of it is undone, and its shim is not used
// again.
func TestWarmCreateWithoutAnAnswer(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	y.pooled("c1")
	y.spares(1)
	y.shim.Update(func(s *shimtest.Scenario) { s.Rules = []shimtest.Rule{{Method: "Create", ID: "c2", Hang: true}} })
	ctx, cancel := context.WithCancel(y.ctx)
	failed := make(chan error, 1)
	go func() {
		_, err := y.tasks.Create(ctx, "c2", y.runcOpts("sleep"))
		failed <- err
	}()
	y.shim.Await(shimtest.KindRPC, "Create", 2)
	w := y.warm("c2")
	cancel()
	y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil })
	require.ErrorIs(t, <-failed, context.Canceled)
	y.removed("c2")
	y.gone(w.dir.ID)
	y.remove("c1")
}

// TestWarmDirectoryCannotBeMade: then the shim is started for the container alone; what cannot be made at all fails and
// leaves nothing.
func TestWarmDirectoryCannotBeMade(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	y := coldPoolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	require.NoError(t, os.Mkdir(y.path("state"), 0o711))
	require.NoError(t, unix.Mount("tmpfs", y.path("state"), "tmpfs", 0, "size=1m,nr_inodes=64"))
	t.Cleanup(func() { _ = unix.Unmount(y.path("state"), unix.MNT_DETACH) })
	y.boot()
	inodes := func(n int) {
		require.NoError(t, unix.Mount("tmpfs", y.path("state"), "tmpfs", unix.MS_REMOUNT,
			"size=1m,nr_inodes="+strconv.Itoa(n)))
	}
	failed, alone := 0, 0
	for n := 2; ; n++ {
		inodes(n)
		_, err := y.tasks.Create(y.ctx, "c1", y.runcOpts("sleep"))
		inodes(64)
		y.until("no spare is being started", func() bool { return !y.filling() })
		if err == nil {
			own := warmth(y.instance("c1").process()) == nil
			y.remove("c1")
			y.removed("c1")
			if !own {
				break
			}
			alone++
		} else {
			failed++
			y.removed("c1")
		}
		require.Less(t, failed+alone, 40)
		y.m.pool.refused = new(warm.Refused[shimclient.FileID])
		y.endIdle()
		y.noPool()
		y.empty()
	}
	require.Greater(t, failed, 3)
	y.endIdle()
	y.noPool()
	y.empty()
	y.halt()
}

// TestSharedShimThatIsLeftInDisorder: one task is about to leave it in good order when it is distrusted, another leaves
// in disorder, and only then is the first through. The shim ends.
func TestSharedShimThatIsLeftInDisorder(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100, Share: 2})
	for _, id := range []string{"a", "b"} {
		y.kill(y.pooled(id))
	}
	w := y.warm("a")
	require.Same(t, w, y.warm("b"))
	a, b := y.instance("a"), y.instance("b")
	for _, i := range []*Instance{a, b} {
		i.onDelete(false)
		_, err := i.deleteInShim(i.context())
		require.NoError(t, err)
	}
	require.True(t, b.recycle(w.p, true))
	y.m.pool.distrust(w.p)
	lingering, err := a.releaseProcess(a.context(), w.p, false)
	require.NoError(t, err)
	require.Nil(t, lingering)
	a.finishDelete(a.context(), cleaning{})
	b.finishDelete(b.context(), cleaning{})
	y.removed("a", "b")
	y.gone(w.dir.ID)
	require.NotContains(t, y.idle(), w.dir.ID)
}
