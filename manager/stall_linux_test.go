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
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestStall: a shim that does not answer costs nobody a container.
func TestStall(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.exec(y.run("c1", "sleep"), "e1", "sleep")
	y.run("c2", "sleep")
	running := y.state(mustGet(y, "c1"))
	y.hurry("c1", "c2")
	task, well := mustGet(y, "c1"), mustGet(y, "c2")
	p, err := task.Process(y.ctx, "e1")
	require.NoError(t, err)
	init, exec := y.waiting(task), y.waiting(p)
	cont := y.stop("c1")

	require.Equal(t, running, y.state(task), "as last known")
	_, err = task.Pids(y.ctx)
	require.True(t, errdefs.IsDeadlineExceeded(err) || errdefs.IsUnavailable(err), "%v", err)
	y.until("the breaker is open",
		func() bool { return processStateOf(y.instance("c1").process()) == shimproc.Unresponsive })
	require.Equal(t, running, y.state(task))
	_, err = task.Pids(y.ctx)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	_, err = task.Stats(y.ctx)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.Equal(t, runtime.RunningStatus, y.state(well).Status, "others go on")

	tasks, err := y.tasks.Tasks(y.ctx, false)
	require.NoError(t, err)
	require.Len(t, tasks, 2)
	for _, task := range tasks {
		require.Equal(t, runtime.RunningStatus, y.state(task).Status, "%s", task.ID())
	}
	killed := make(chan error, 1)
	go func() { killed <- task.Kill(y.ctx, 9, true) }()
	time.Sleep(100 * time.Millisecond) // whatever a manager would do in haste, it would do now
	require.Len(t, y.shim.Procs(), 5, "two shims, two containers and an exec; nothing was killed")
	require.Empty(t, init)
	require.Empty(t, exec)
	require.Empty(t, y.events.of("c1", exitTopic, deleteTopic))
	require.Zero(t, y.shim.Count(shimtest.KindExec, "delete"))

	cont()
	require.NoError(t, <-killed, "a kill goes out, and comes through")
	require.Equal(t, uint32(137), (<-init).exit.Status)
	require.Equal(t, uint32(137), (<-exec).exit.Status)
	y.until("the breaker is closed",
		func() bool { return processStateOf(y.instance("c1").process()) == shimproc.Connected })
	require.Equal(t, runtime.StoppedStatus, y.state(task).Status)
	y.oneConnection("c1")
	y.remove("c1")
	y.remove("c2")
	y.empty()
}

// TestListWithAStall is answered from the record where a shim does not answer, before any breaker has opened.
func TestListWithAStall(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	want := make(map[string]runtime.State)
	for _, id := range []string{"c1", "c2", "c3"} {
		want[id] = y.state(y.run(id, "sleep"))
	}
	y.kill(mustGet(y, "c3"))
	want["c3"] = y.state(mustGet(y, "c3"))
	cont1, cont3 := y.stop("c1"), y.stop("c3")
	tasks, err := y.tasks.Tasks(y.ctx, false)
	require.NoError(t, err)
	got := make(map[string]runtime.State)
	for _, task := range tasks {
		got[task.ID()] = y.state(task)
	}
	require.Equal(t, want, got)
	all, err := y.tasks.Tasks(y.ctx, true)
	require.NoError(t, err)
	require.Len(t, all, 3)
	cont1()
	cont3()
	for id := range want {
		y.remove(id)
	}
	y.empty()
}

// TestLostConnection: a lost connection alone is not death.
func TestLostConnection(t *testing.T) {
	for _, transport := range []string{"ttrpc", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{
				Transport: transport,
				Rules: []shimtest.Rule{{Method: "Pids", Drop: true, Times: 1},
					{Method: "Pause", Drop: true, Times: 1, After: true}},
			})
			task := y.run("c1", "sleep")
			w := y.waiting(task)
			y.shim.Await(shimtest.KindRPC, "Wait", 1)
			pids, err := task.Pids(y.ctx)
			require.NoError(t, err, "what changes nothing is asked again")
			require.Len(t, pids, 1)
			y.shim.Await(shimtest.KindRPC, "Wait", 2)
			require.True(t, errdefs.IsUnavailable(task.Pause(y.ctx)), "nobody knows whether it was done")
			require.Equal(t, runtime.PausedStatus, y.state(task).Status)
			require.NoError(t, task.Resume(y.ctx))
			require.Empty(t, w)
			y.oneConnection("c1")
			require.Empty(t, y.events.of("c1", exitTopic, deleteTopic))
			require.Zero(t, y.shim.Count(shimtest.KindExec, "delete"))
			y.kill(task)
			require.Equal(t, uint32(137), (<-w).exit.Status)
			y.remove("c1")
			y.empty()
		})
	}
}

// TestUnreachable: a shim that lives and cannot be reached is left alone, until it is dead.
func TestUnreachable(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	task := y.run("c1", "sleep")
	w := y.waiting(task)
	setTimeout(t, shimproc.TimeoutLoad, 300*time.Millisecond)
	y.shim.Update(func(s *shimtest.Scenario) {
		s.Rules = []shimtest.Rule{{Method: "Stats", Unlisten: true, Drop: true}}
	})
	_, err := task.Stats(y.ctx)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, "since")
	require.Equal(t, runtime.RunningStatus, y.state(task).Status)
	require.NoError(t, os.Remove(y.shim.Sockets()[0]), "as a tmp cleaner does")
	_, err = task.Pids(y.ctx)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.Equal(t, runtime.RunningStatus, y.state(task).Status)
	require.Len(t, y.shim.Procs(), 2)
	require.Empty(t, w)
	require.Empty(t, y.events.of("c1", exitTopic))
	y.killShim("c1")
	require.Equal(t, uint32(137), (<-w).exit.Status)
	require.Equal(t, []string{"c1", ""}, idsOf(y.exitsOf("c1")))
}

// TestPidThatIsNotOurs: a pid that the shim cannot have proves nothing (a VM's, another pid namespace's). Death is
// proven by the socket then, and by there being no process of the launch.
func TestPidThatIsNotOurs(t *testing.T) {
	y := newYard(t, shimtest.Scenario{ShimPid: 1})
	y.run("c1", "sleep")
	require.Zero(t, y.instance("c1").process().Verified())
	y.killShim("c1")
	require.Equal(t, []string{"c1", ""}, idsOf(y.exitsOf("c1")))
}

// TestDeleteOfASilentShim whose container is gone: the shim has nothing to lose, and is ended so that the delete comes
// to an end.
func TestDeleteOfASilentShim(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	y.hurry("c1")
	y.silence("c1")
	require.NoError(t, y.shim.Procs(shimtest.RoleGuest)[0].Kill())
	y.until("its init is known to be gone", y.instance("c1").ledger.InitGone)
	setTimeout(t, shimproc.TimeoutCleanup, 2*time.Second)
	exit, err := y.tasks.Delete(y.ctx, "c1")
	require.NoError(t, err)
	require.NotZero(t, exit.Status)
	heard := y.exitsOf("c1")
	require.Equal(t, []string{"c1", ""}, idsOf(heard))
	require.Equal(t, exit.Status, heard[0].Status)
	require.Empty(t, y.shim.Procs())
}

// TestDeleteOfASilentShimThatIsNeeded: whose container lives, or that serves another one, is not touched.
func TestDeleteOfASilentShimThatIsNeeded(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(strconv.FormatBool(shared), func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			ids := []string{"c1"}
			create := func(id string) {
				task, err := y.tasks.Create(y.ctx, id, y.grouped("c1"))
				require.NoError(t, err)
				require.NoError(t, task.Start(y.ctx))
			}
			create("c1")
			if shared {
				create("c2")
				ids = append(ids, "c2")
			}
			y.hurry(ids...)
			cont := y.silence("c1")
			procs := len(y.shim.Procs())
			if shared {
				for _, p := range y.shim.Procs(shimtest.RoleGuest) {
					if p.ID == "c1" {
						require.NoError(t, p.Kill())
						procs--
					}
				}
			}
			setTimeout(t, shimproc.TimeoutCleanup, 300*time.Millisecond)
			ctx, cancel := context.WithTimeout(y.ctx, time.Second)
			defer cancel()
			_, err := y.tasks.Delete(ctx, "c1")
			require.True(t, errdefs.IsDeadlineExceeded(err), "%v", err)
			require.Len(t, y.shim.Procs(), procs)
			require.Empty(t, y.events.of("c1", exitTopic))
			setTimeout(t, shimproc.TimeoutCleanup, time.Minute)
			cont()
			y.inState("c1", life.Running)
			if shared { // the shim has deleted it meanwhile, or does now
				y.until("it has reaped the container too", func() bool {
					_, err := y.tasks.Delete(y.ctx, "c1")
					if err != nil {
						require.ErrorContains(t, err, "running process")
					}
					return err == nil
				})
			} else {
				y.remove("c1")
			}
			if shared {
				require.Equal(t, runtime.RunningStatus, y.state(mustGet(y, "c2")).Status)
				y.remove("c2")
			}
			y.empty()
		})
	}
}
