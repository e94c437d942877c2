// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestRestart: all tasks are there at once and are taken over with one State each.
func TestRestart(t *testing.T) {
	for name, s := range map[string]shimtest.Scenario{
		"bootstrap": {}, "grpc": {Transport: "grpc"}, "containerd 1.6": {Generation: shimtest.Legacy},
		"abstract": {Socket: shimtest.Abstract},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, s)
			before := make(map[string]runtime.State)
			task := y.run("running", "sleep")
			y.exec(task, "e1", "sleep")
			before["running"] = y.state(task)
			before["created"] = y.state(y.create("created", "sleep"))
			stopped := y.run("stopped", "exit", "7")
			_, err := stopped.Wait(y.ctx)
			require.NoError(t, err)
			before["stopped"] = y.state(stopped)
			from := 0
			y.restart(func() { from = len(y.shim.Trace()) })

			require.Len(t, y.m.list("", life.Task), 3, "at once")
			for id, want := range before {
				y.inState(id, life.Running)
				require.Equal(t, 1, y.rpcs(from, "State", id), "%s", id)
				require.Equal(t, want, y.state(mustGet(y, id)))
				if s.Socket != shimtest.Abstract { // which the kernel does not list by path
					y.oneConnection(id)
				}
			}
			all, err := y.tasks.Tasks(context.Background(), true)
			require.NoError(t, err)
			require.Len(t, all, 3)
			require.Zero(t, y.shim.Count(shimtest.KindRPC, "Pids"))
			exit, err := mustGet(y, "stopped").Wait(y.ctx)
			require.NoError(t, err)
			require.Equal(t, uint32(7), exit.Status)
			p, err := mustGet(y, "running").Process(y.ctx, "e1")
			require.NoError(t, err)
			w := y.waiting(p)
			require.NoError(t, p.Kill(y.ctx, 9, false))
			require.Equal(t, uint32(137), (<-w).exit.Status)
			require.NoError(t, mustGet(y, "created").Start(y.ctx))
			for id := range before {
				y.remove(id)
			}
			y.empty()
			require.Zero(t, y.shim.Count(shimtest.KindRPC, "Pids"))
		})
	}
}

// TestStatsOfATaskThatWasDeadAtTheStart: containerd's collector of metrics takes a handle of each task at the daemon's
// start, and no other one of that id until a client deletes the task, which nobody does where the shim was dead.
func TestStatsOfATaskThatWasDeadAtTheStart(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	y.halt()
	y.killShim("c1")
	y.list()
	collected, err := y.tasksOf().Tasks(context.Background(), true)
	require.NoError(t, err)
	require.Len(t, collected, 1)
	y.begin()
	y.empty()
	_, err = collected[0].Stats(y.ctx)
	require.True(t, errdefs.IsNotFound(err), "while no task has the id: %v", err)

	y.run("c1", "sleep")
	stats, err := collected[0].Stats(y.ctx)
	require.NoError(t, err, "the task that has the id now is hidden")
	require.NotEmpty(t, stats.TypeUrl)
	_, err = collected[0].State(y.ctx)
	require.True(t, errdefs.IsNotFound(err), "nothing but metrics is answered for another task: %v", err)
	y.remove("c1")
	y.empty()
	_, err = collected[0].Stats(y.ctx)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

// TestRestartNeverCreated: a launch that was answered, after which the daemon was killed: the shim has no such task.
func TestRestartNeverCreated(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.launchOnly("c1")
	y.restart()
	y.empty()
	y.shim.AwaitNoProcs()
	y.events.settle()
	require.Empty(t, y.events.of("c1"), "nobody is told")
}

// TestRestartOfACutCreateWithoutBootstrap: the daemon was killed when a Create may have been sent, and the file that
// says how to reach the shim was lost. What the shim has made is undone by it or, if it is dead, by its delete.
func TestRestartOfACutCreateWithoutBootstrap(t *testing.T) {
	for name, alive := range map[string]bool{"shim lives": true, "shim is dead": false} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			y.launchOnly("c1")
			y.restart(func() {
				require.NoError(t, os.Remove(filepath.Join(y.bundle("c1"), "bootstrap.json")))
				if !alive {
					y.shim.KillAll()
				}
			})
			y.empty()
			y.shim.AwaitNoProcs()
			require.Equal(t, alive, y.rpcs(0, "State", "c1") > 0)
			require.NotEmpty(t, y.shim.Find(shimtest.KindExec, "delete"))
			y.events.settle()
			require.Empty(t, y.events.of("c1"), "nobody is told")
		})
	}
}

// TestRestartOfALaunchWithoutBootstrap: the daemon was killed before a Create can have been sent, and the file that
// says how to reach the shim was lost. The launch's processes are found by its token.
func TestRestartOfALaunchWithoutBootstrap(t *testing.T) {
	for _, how := range []string{"removed", "empty", "half"} {
		t.Run(how, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			y.launchOnly("c1")
			y.restart(func() {
				y.changeRecord("c1", func(r map[string]any) {
					delete(r, "endpoint")
					delete(r, "shim")
				})
				damage{"bootstrap.json", how}.do(t, y.bundle("c1"))
			})
			y.empty()
			y.shim.AwaitNoProcs()
			require.Empty(t, y.shim.Find(shimtest.KindExec, "delete"), "there is nothing to delete")
		})
	}
}

// launchOnly is a create that was cut short after the launch.
func (y *yard) launchOnly(id string) {
	y.Helper()
	require.NoError(y, y.launchOf(id, y.opts("sleep")))
}

// TestRestartOfWhatTheStoreKnows: a sandbox's shim may serve no task under the sandbox's id.
func TestRestartOfWhatTheStoreKnows(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.sandboxes.add("c1")
	y.launchOnly("c1")
	y.restart()
	y.inState("c1", life.Running)
	require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 1)
	_, err := y.tasks.Delete(y.ctx, "c1")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	y.empty()
}

// TestRestartWithAStoreThatFails: until the store has answered nothing is decided.
func TestRestartWithAStoreThatFails(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.launchOnly("c1")
	y.sandboxes.fail(errdefs.ErrUnknown)
	y.restart()
	y.shim.Await(shimtest.KindAnswer, "State", 1)
	y.shim.Await(shimtest.KindAnswer, "State", 2)
	require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 1)
	y.sandboxes.fail(nil)
	y.empty()
}

// TestLaunchCutShort: the daemon was killed between the trace of a launch and its answer. What the launch started is
// found by its token and ended, at whichever point it is.
func TestLaunchCutShort(t *testing.T) {
	for name, s := range map[string]shimtest.Scenario{
		"helper runs":   {Generation: shimtest.Lenient, Start: shimtest.StartFaults{HangAt: shimtest.BeforeFork}},
		"daemon runs":   {Generation: shimtest.Lenient, Start: shimtest.StartFaults{HangAt: shimtest.AfterFork}},
		"only a record": {Generation: shimtest.Lenient, Start: shimtest.StartFaults{FailAt: shimtest.AtEntry}},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, s)
			i := newInstance(y.m, y.tasks.layout, life.Task, testNamespace, "c1", life.Launching)
			b, err := y.m.resolver.Resolve(y.shim.Path)
			require.NoError(t, err)
			i.describe(&createRequest{specFacts: specFacts{raw: []byte("{}")}}, b)
			require.NoError(t, y.m.prepare(y.ctx, i))
			end := y.launchByHand(i)
			y.restart()
			// its address is told already; helpers of a shim that answers are waited for
			if s.Start.HangAt == shimtest.AfterFork {
				y.shim.Update(func(s *shimtest.Scenario) { s.Start = shimtest.StartFaults{} })
			}
			y.empty()
			y.shim.AwaitNoProcs()
			end()
			y.events.settle()
			require.Empty(t, y.events.of("c1"))
		})
	}
}

// TestRestartWithoutTheBinary: a binary that was moved costs nobody a container.
func TestRestartWithoutTheBinary(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	y.restart(func() { require.NoError(t, os.Rename(y.shim.Path, y.shim.Path+".away")) })
	y.inState("c1", life.Running)
	require.Equal(t, runtime.RunningStatus, y.state(mustGet(y, "c1")).Status)
	require.Equal(t, uint32(137), y.remove("c1").Status)
	y.empty()
	y.shim.AwaitNoProcs()
}

// TestDeadWhileDown: exits and deletion of a task whose shim has died while the daemon was down are told, once.
func TestDeadWhileDown(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	task := y.run("c1", "sleep")
	pid, _ := task.PID(y.ctx)
	e := y.exec(task, "e1", "sleep")
	execPid := y.state(e).Pid
	done := y.run("c2", "exit", "7")
	_, err := done.Wait(y.ctx)
	require.NoError(t, err)
	y.events.await("c2", exitTopic, 1)
	y.until("the record says that it was told", func() bool {
		r := y.record("c2")
		return r.Task.Exit != nil && r.Task.Exit.Told
	})
	y.restart(func() {
		y.killShim("c1")
		y.killShim("c2")
	})
	heard := y.exitsOf("c1")
	require.Equal(t, []string{"e1", "c1", ""}, idsOf(heard))
	require.Equal(t, execPid, heard[0].Pid)
	require.Equal(t, uint32(255), heard[0].Status)
	require.Equal(t, pid, heard[1].Pid)
	require.Equal(t, uint32(137), heard[1].Status)
	require.Equal(t, []string{"c2", ""}, idsOf(y.exitsOf("c2")), "the exit was told before the restart")
	y.restart()
	y.empty()
	y.events.settle()
	require.Len(t, y.events.of("c1", exitTopic, deleteTopic), 3)
}

// TestExitWhileDown: a container that exits while the daemon is down keeps its exit.
func TestExitWhileDown(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "exit-after", "300", "7")
	y.restart(func() { y.shim.AwaitNoProcs(shimtest.RoleGuest) })
	exit, err := mustGet(y, "c1").Wait(y.ctx)
	require.NoError(t, err)
	require.Equal(t, uint32(7), exit.Status)
	s := y.state(mustGet(y, "c1"))
	require.Equal(t, runtime.StoppedStatus, s.Status)
	require.Equal(t, uint32(7), s.ExitStatus)
	y.events.await("c1", exitTopic, 1)
	y.remove("c1")
	y.empty()
	y.events.settle()
	heard := y.events.of("c1", exitTopic, deleteTopic)
	require.Equal(t, []string{"c1", ""}, idsOf(heard))
	require.Equal(t, uint32(7), heard[0].Status)
}

// TestRestartWithAStall: the daemon is ready at once, the task is listed and answered for, and nothing of it is
// touched.
func TestRestartWithAStall(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	before := y.state(y.run("c1", "sleep"))
	cont := y.stop("c1")
	setTimeout(t, shimproc.TimeoutLoad, 300*time.Millisecond)
	setTimeout(t, shimproc.TimeoutCleanup, 300*time.Millisecond)
	y.hurry()
	task := mustGet(y, "c1")
	w := y.waiting(task)
	require.Equal(t, before, y.state(task))
	tasks, err := y.tasks.Tasks(y.ctx, false)
	require.NoError(t, err)
	require.Equal(t, before, y.state(tasks[0]))
	// It goes out once the shim is known to be silent; before that it waits for the takeover.
	ctx, cancel := context.WithTimeout(y.ctx, time.Second)
	defer cancel()
	_, err = y.tasks.Delete(ctx, "c1")
	require.True(t, errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err), "%v", err)
	_, err = task.Pids(y.ctx)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	_, err = y.tasks.Create(y.ctx, "c1", y.opts("sleep"))
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	require.Len(t, y.shim.Procs(), 2)
	require.Empty(t, w)
	setTimeout(t, shimproc.TimeoutLoad, time.Minute)
	setTimeout(t, shimproc.TimeoutCleanup, time.Minute)
	cont()
	y.inState("c1", life.Running)
	require.Equal(t, before, y.state(task))
	y.kill(task)
	require.Equal(t, uint32(137), (<-w).exit.Status)
	y.remove("c1")
	y.empty()
}

// TestStrangersAreLeftAlone: what is no bundle is reported, not deleted.
func TestStrangersAreLeftAlone(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{})
	y.untidy = true
	precious := y.path("precious")
	require.NoError(t, os.MkdirAll(filepath.Join(y.path("state"), testNamespace, "dir"), 0o700))
	require.NoError(t, os.WriteFile(precious, []byte("data"), 0o600))
	for _, name := range []string{"dir/data", "file"} {
		require.NoError(t, os.WriteFile(filepath.Join(y.path("state"), testNamespace, name), []byte("data"), 0o600))
	}
	require.NoError(t, os.Symlink(y.dir, filepath.Join(y.path("state"), testNamespace, "link")))
	y.boot()
	y.restart()
	require.NoError(t, y.m.awaitReady(y.ctx))
	tasks, err := y.tasks.Tasks(y.ctx, true)
	require.NoError(t, err)
	require.Empty(t, tasks)
	require.FileExists(t, precious)
	require.FileExists(t, filepath.Join(y.path("state"), testNamespace, "dir", "data"))
	require.FileExists(t, filepath.Join(y.path("state"), testNamespace, "file"))
}

// TestWaitOverClose: the stop of the daemon fails no Wait.
func TestWaitOverClose(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	task := y.run("c1", "sleep")
	w := y.waiting(task)
	y.shim.Await(shimtest.KindRPC, "Wait", 1)
	y.until("the manager is closed", func() bool { return y.m.Close() == nil })
	require.NoError(t, task.Kill(y.ctx, 9, false), "the connection stays open until the process ends")
	require.Equal(t, uint32(137), (<-w).exit.Status)
	y.restart()
	y.remove("c1")
	y.empty()
}
