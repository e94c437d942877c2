// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestWarmShimServesAgain: after a delete in good order the next create takes the same process, without an exec.
func TestWarmShimServesAgain(t *testing.T) {
	for name, s := range map[string]shimtest.Scenario{"ttrpc": {}, "grpc": {Transport: "grpc"},
		"bare path": {Transport: "grpc", Socket: shimtest.Bare}} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, s, PoolConfig{Warm: 1, Reuse: 100})
			y.pooled("c1")
			w := y.warm("c1")
			y.spares(1)
			require.Equal(t, 2, y.starts())
			y.remove("c1")
			y.removed("c1")

			y.pooled("c2")
			require.Same(t, w.p, y.instance("c2").process())
			y.lentTo("c2", w)
			y.remove("c2")
			y.removed("c2")
			require.Empty(t, y.shim.Find(shimtest.KindExec, "delete"))
			require.Zero(t, y.shim.Count(shimtest.KindRPC, "Shutdown"))
			for n := range 5 {
				y.round(fmt.Sprintf("r%d", n), y.runcOpts("sleep"))
			}
			require.Len(t, y.idle(), 2)
			require.Equal(t, 2, y.starts())
		})
	}
}

// TestSteadyStateOfThePool leaves descriptors and goroutines as they were, and starts nothing.
func TestSteadyStateOfThePool(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 1000})
	y.round("c0", y.runcOpts("sleep"))
	y.spares(2)
	from := y.starts()
	y.steady(20, func(n int) { y.round(fmt.Sprintf("c%d", n%7), y.runcOpts("sleep")) })
	require.Equal(t, from, y.starts())
	y.spares(2)
	require.Len(t, y.warmDirs(), 2)
}

// TestSparesFollowDemand: each create that finds no shim lets one more be kept ahead, up to what config says.
func TestSparesFollowDemand(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 2, Reuse: 100})
	y.pooled("c1")
	y.spares(1)
	y.pooled("c2")
	y.spares(1)
	require.Equal(t, 3, y.starts(), "c2 got the spare, which was replaced")
	for n := range 2 { // at the second miss there are as many as config allows, and no more at the third
		held := y.takeAll()
		y.pooled(fmt.Sprintf("m%d", n))
		y.spares(2)
		y.giveAllUp(held)
	}
	for _, i := range y.m.list("", life.Task) {
		y.remove(i.id)
	}
}

// TestPoolCeiling: of all keys together there are never more idle shims than config allows.
func TestPoolCeiling(t *testing.T) {
	y := coldPoolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 4, Reuse: 100})
	y.config.WarmLimit = 2
	y.boot()
	var ids []string
	for n := range 4 {
		ids = append(ids, fmt.Sprintf("c%d", n))
		y.pooled(ids[n], func(o *runtime.CreateOpts) { o.RuntimeOptions = anyOf(y, args(strconv.Itoa(n%2))) })
	}
	y.until("no spare is being started", func() bool { return !y.filling() })
	require.LessOrEqual(t, len(y.idle()), 2)
	deleted := make(chan error, len(ids))
	for _, id := range ids {
		y.kill(mustGet(y, id))
		go func() {
			_, err := y.tasks.Delete(y.ctx, id)
			deleted <- err
		}()
	}
	for range ids {
		require.NoError(t, <-deleted)
	}
	y.removed(ids...)
	y.until("those above the ceiling have ended",
		func() bool { return len(y.daemons()) == 2 && len(y.warmDirs()) == 2 })
	require.Len(t, y.idle(), 2)
}

// TestIdleShimsEnd when nobody wants them, and with them what was kept ahead.
func TestIdleShimsEnd(t *testing.T) {
	y := coldPoolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 2, Reuse: 100})
	y.config.WarmIdle = 500 * time.Millisecond
	y.boot()
	y.pooled("c1")
	y.pooled("c2")
	y.remove("c1")
	y.remove("c2")
	y.noPool()
	require.Empty(t, y.idle())
	y.empty()
	from := y.starts()
	y.pooled("c3")
	y.until("there is one spare again", func() bool { return !y.filling() && y.starts() == from+2 })
	y.remove("c3")
	y.noPool()
}

// TestReuseLimit: so many tasks after the first, then the process ends with its task.
func TestReuseLimit(t *testing.T) {
	for _, reuse := range []int{0, 2} {
		t.Run(strconv.Itoa(reuse), func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: reuse})
			y.pooled("c0")
			w := y.warm("c0")
			y.spares(1)
			held := y.takeAll() // so that it is w which comes next
			for n := range reuse {
				y.remove(fmt.Sprintf("c%d", n))
				y.pooled(fmt.Sprintf("c%d", n+1))
				require.Same(t, w, y.warm(fmt.Sprintf("c%d", n+1)))
				y.spares(1) // in the place of the one that is held
				held = append(held, y.takeAll()...)
			}
			last := fmt.Sprintf("c%d", reuse)
			y.remove(last)
			y.removed(last)
			y.gone(w.dir.ID)
			require.NotContains(t, y.idle(), w.dir.ID)
			y.giveAllUp(held)
		})
	}
}

// TestShared: up to so many tasks are in one process, then another one is used. A delete leaves the others alone.
func TestShared(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 0, Share: 3})
	var shims []*warmShim
	for n := range 4 {
		y.pooled(fmt.Sprintf("c%d", n))
		shims = append(shims, y.warm(fmt.Sprintf("c%d", n)))
	}
	require.Same(t, shims[0], shims[1])
	require.Same(t, shims[0], shims[2])
	require.NotSame(t, shims[0], shims[3])
	y.remove("c1")
	y.removed("c1")
	for _, id := range []string{"c0", "c2", "c3"} {
		require.Equal(t, runtime.RunningStatus, y.state(mustGet(y, id)).Status)
	}
	y.pooled("c4")
	require.Same(t, shims[3], y.warm("c4"), "one that a task has left takes none: reuse is 0")
	y.remove("c0")
	y.remove("c2")
	y.gone(shims[0].dir.ID)
	y.remove("c3")
	y.remove("c4")
	y.gone(shims[3].dir.ID)
}

// TestSharedShimsAreUsedAgain, also when all their tasks leave at once.
func TestSharedShimsAreUsedAgain(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 1000, Share: 4})
	var w *warmShim
	for range 5 {
		done := make(chan error, 4)
		for n := range 4 {
			id := fmt.Sprintf("c%d", n)
			y.pooled(id)
			if w == nil {
				w = y.warm(id)
			}
			y.kill(mustGet(y, id))
		}
		for n := range 4 {
			go func() {
				_, err := y.tasks.Delete(y.ctx, fmt.Sprintf("c%d", n))
				done <- err
			}()
		}
		for range 4 {
			require.NoError(t, <-done)
		}
		y.removed("c0", "c1", "c2", "c3")
		require.Contains(t, y.idle(), w.dir.ID)
	}
	y.spares(2)
	require.Equal(t, 2, y.starts())
}

// TestDeathOfASharedShim: each of its tasks has one exit and one deletion.
func TestDeathOfASharedShim(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100, Share: 3})
	ids := []string{"c0", "c1", "c2"}
	for _, id := range ids {
		y.pooled(id)
	}
	w := y.warm("c0")
	y.killShim(w.dir.ID)
	for _, id := range ids {
		y.events.await(id, deleteTopic, 1)
	}
	y.removed(ids...)
	y.events.settle()
	for _, id := range ids {
		require.Equal(t, []string{id, ""}, idsOf(y.events.of(id, exitTopic, deleteTopic)))
	}
	y.gone(w.dir.ID)
	require.NotContains(t, y.idle(), w.dir.ID)
}

// TestManyAtOnce: no process serves two tasks at a time, none is lost and none is left.
func TestManyAtOnce(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 3, Reuse: 7})
	const workers, rounds = 6, 12
	failed := make(chan error, workers)
	for n := range workers {
		go func() { failed <- y.churn(fmt.Sprintf("c%d", n), rounds) }()
	}
	for range workers {
		require.NoError(t, <-failed)
	}
	y.until("all tasks are gone", func() bool { return len(y.m.list("", life.Task)) == 0 })
	y.until("no spare is being started", func() bool { return !y.filling() })
	y.serveOneAtATime()
	y.until("all that is left is idle", func() bool {
		return len(y.daemons()) == len(y.idle()) &&
			len(y.warmDirs()) == len(y.idle())
	})
}

// churn creates and deletes under one id.
func (y *yard) churn(id string, rounds int) error {
	for range rounds {
		task, err := y.tasks.Create(y.ctx, id, y.runcOpts("sleep"))
		if err != nil {
			return err
		}
		if err := task.Start(y.ctx); err != nil {
			return err
		}
		if err := task.Kill(y.ctx, 9, true); err != nil {
			return err
		}
		if _, err := task.Wait(y.ctx); err != nil {
			return err
		}
		if _, err := y.tasks.Delete(y.ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// serveOneAtATime requires of the trace that between a Create and the answer to its Delete a process got no other
// Create.
func (y *yard) serveOneAtATime() {
	y.Helper()
	serves := make(map[int]string)
	for _, e := range y.shim.Trace() {
		switch {
		case e.Kind == shimtest.KindRPC && e.Action == "Create":
			require.Empty(y, serves[e.Pid], "the shim %d of %s is given to %s", e.Pid, serves[e.Pid], e.ID)
			serves[e.Pid] = e.ID
		case e.Kind == shimtest.KindAnswer && e.Action == "Delete" && e.ExecID == "":
			require.Equal(y, serves[e.Pid], e.ID)
			delete(serves, e.Pid)
		}
	}
	require.Empty(y, serves)
}

// TestNamelessWarmShim: the shim's binary says that all that it runs can be found by the id that the shim was started
// under, and it is not so. It is noticed at the first launch, and from then on a variable does it.
func TestNamelessWarmShim(t *testing.T) {
	for _, nameless := range []bool{false, true} {
		t.Run(fmt.Sprint(nameless), func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{Nameless: nameless}, PoolConfig{Warm: 1, Reuse: 1})
			for range 3 {
				y.pooled("c1")
				w := y.warm("c1")
				require.Equal(t, nameless, strings.HasPrefix(shimclient.CarrierEnv(w.token), shimclient.TokenEnv))
				found, err := shimclient.FindByToken(y.ctx, w.token)
				require.NoError(t, err)
				require.Equal(t, []shimclient.ProcessID{w.p.Verified()}, found)
				y.remove("c1")
				y.removed("c1")
			}
		})
	}
}
