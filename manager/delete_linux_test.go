// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestCleanupPolicy: how often `shim delete` runs after an orderly delete.
func TestCleanupPolicy(t *testing.T) {
	for _, c := range []struct {
		name     string
		policy   CleanupPolicy
		runc     bool
		scenario shimtest.Scenario
		runs     int
	}{
		{name: "nobody vouched for it", policy: CleanupAuto, runs: 1},
		{name: "no section", runs: 1},
		{name: "runc", policy: CleanupAuto, runc: true},
		{name: "runc of version 2", policy: CleanupAuto, runc: true, scenario: replying(shimtest.Reply{Version: 2}),
			runs: 1},
		{name: "always", policy: CleanupAlways, runc: true, runs: 1},
		{name: "on failure", policy: CleanupOnFailure},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := coldYard(t, c.scenario, shimtest.WithName("containerd-shim-runc-v2"))
			o := y.opts("sleep")
			if c.runc {
				o.Runtime = plugins.RuntimeRuncV2
				y.config.Runtimes[plugins.RuntimeRuncV2] = RuntimeConfig{Path: y.shim.Path, Cleanup: c.policy}
			} else if c.policy != "" {
				y.config.Runtimes[y.shim.Path] = RuntimeConfig{Cleanup: c.policy}
			}
			y.boot()
			_, err := y.tasks.Create(y.ctx, "c1", o)
			require.NoError(t, err)
			y.remove("c1")
			y.empty()
			require.Equal(t, c.runs, y.shim.Count(shimtest.KindExec, "delete"))
			require.Equal(t, 1, y.shim.Count(shimtest.KindRPC, "Delete"))
			require.Equal(t, 1, y.shim.Count(shimtest.KindRPC, "Shutdown"))
		})
	}
}

// TestDeleteExec: the contract of `shim delete`: arguments, directory, environment.
func TestDeleteExec(t *testing.T) {
	y := newYard(t, shimtest.Scenario{TraceEnv: []string{"YARD"}})
	y.create("c1", "sleep")
	dir := y.bundle("c1")
	y.remove("c1")
	for _, action := range []string{"start", "delete"} {
		e := y.shim.Find(shimtest.KindExec, action)
		require.Len(t, e, 1)
		require.Contains(t, e[0].Env, "YARD=1", action)
		require.Contains(t, e[0].Env, "TTRPC_ADDRESS="+y.events.path)
		require.Contains(t, e[0].Env, "GRPC_ADDRESS="+y.config.GRPCAddress)
		require.Contains(t, e[0].Env, "NAMESPACE="+testNamespace)
		require.Equal(t, dir, e[0].Cwd)
		require.Equal(t, action == "delete", slices.Contains(e[0].Argv, "-bundle"))
	}
}

// TestDeleteRetried: one who left while the shim deleted gets the exit that was recorded.
func TestDeleteRetried(t *testing.T) {
	y := newYard(t, rules(shimtest.Rule{Method: "Delete", Hang: true}))
	task := y.run("c1", "exit", "7")
	exit, err := task.Wait(y.ctx)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(y.ctx)
	failed := make(chan error, 1)
	go func() {
		_, err := y.tasks.Delete(ctx, "c1")
		failed <- err
	}()
	y.shim.Await(shimtest.KindRPC, "Delete", 1)
	cancel()
	require.ErrorIs(t, <-failed, context.Canceled)
	y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil })
	y.until("the delete is answered", func() bool { return y.shim.Count(shimtest.KindAnswer, "Delete") == 1 })

	again, err := y.tasks.Delete(y.ctx, "c1")
	require.NoError(t, err)
	require.Equal(t, exit, again)
	require.Equal(t, uint32(7), again.Status)
	require.Equal(t, 1, y.shim.Count(shimtest.KindRPC, "Delete"), "the shim is not asked twice")
	y.empty()
}

// TestDeleteAnsweredBeforeARestart: the recorded exit outlives the daemon.
func TestDeleteAnsweredBeforeARestart(t *testing.T) {
	y := newYard(t, rules(shimtest.Rule{Method: "Shutdown", Code: "Internal", Message: "busy", Times: 1}))
	y.run("c1", "exit", "7")
	task, err := y.tasks.Get(y.ctx, "c1")
	require.NoError(t, err)
	_, err = task.Wait(y.ctx)
	require.NoError(t, err)
	_, err = y.tasks.Delete(y.ctx, "c1")
	require.ErrorContains(t, err, "busy")
	y.restart()
	// Nobody was given the exit, but the shim has no such task: it is finished quietly.
	y.empty()
}

// TestShutdownFails: record and bundle stay for a retry, which asks for the rest only.
func TestShutdownFails(t *testing.T) {
	y := newYard(t, rules(shimtest.Rule{Method: "Shutdown", Code: "Internal", Message: "busy", Times: 2}))
	task := y.run("c1", "exit", "7")
	exit, err := task.Wait(y.ctx)
	require.NoError(t, err)
	for range 2 {
		_, err := y.tasks.Delete(y.ctx, "c1")
		require.ErrorContains(t, err, "busy")
		require.DirExists(t, y.bundle("c1"))
		require.Equal(t, runtime.StoppedStatus, y.state(task).Status, "it is still a task")
	}
	again, err := y.tasks.Delete(y.ctx, "c1")
	require.NoError(t, err)
	require.Equal(t, exit, again)
	require.Equal(t, 1, y.shim.Count(shimtest.KindRPC, "Delete"))
	y.empty()
}

// TestDeleteNotFound by the shim: with an exit on record that is the answer; without one all is cleaned up, then
// NotFound.
func TestDeleteNotFound(t *testing.T) {
	for _, known := range []bool{true, false} {
		t.Run(strconv.FormatBool(known), func(t *testing.T) {
			y := runcYard(t, shimtest.Scenario{
				Rules: []shimtest.Rule{{Method: "Delete", After: true, Code: "NotFound",
					Message: "container not created"}},
				Events: []shimtest.EventRule{{Topic: "*", Drop: true}},
			})
			task, err := y.tasks.Create(y.ctx, "c1", y.runcOpts("sleep"))
			require.NoError(t, err)
			if known {
				y.kill(task)
			} else {
				require.NoError(t, y.shim.Procs(shimtest.RoleGuest)[0].Kill())
				y.until("the shim has seen it",
					func() bool { _, err := os.Stat(filepath.Join(y.bundle("c1"), "exit.json")); return err == nil })
			}
			exit, err := y.tasks.Delete(y.ctx, "c1")
			if known {
				require.NoError(t, err)
				require.Equal(t, uint32(137), exit.Status)
				require.Zero(t, y.shim.Count(shimtest.KindExec, "delete"))
			} else {
				require.True(t, errdefs.IsNotFound(err), "%v", err)
				require.ErrorContains(t, err, "container not created")
				require.Equal(t, 1, y.shim.Count(shimtest.KindExec, "delete"), "it was not orderly")
			}
			y.empty()
			_, err = y.tasks.Delete(y.ctx, "c1")
			require.True(t, errdefs.IsNotFound(err), "%v", err)
		})
	}
}

// TestDeleteRefused: what the shim says passes through, and the task goes on.
func TestDeleteRefused(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	task := y.run("c1", "sleep")
	_, err := y.tasks.Delete(y.ctx, "c1")
	require.EqualError(t, err, "cannot delete task c1: cannot delete a running process")
	require.Equal(t, runtime.RunningStatus, y.state(task).Status)
	y.remove("c1")
	_, err = y.tasks.Delete(y.ctx, "c1")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	y.empty()
}

// TestDeleteTwiceAtOnce: one of them deletes, and all who waited for it get the exit.
func TestDeleteTwiceAtOnce(t *testing.T) {
	y := newYard(t, rules(shimtest.Rule{Method: "Delete", Delay: 100 * time.Millisecond}))
	want := y.kill(y.run("c1", "sleep"))
	type deleted struct {
		exit *runtime.Exit
		err  error
	}
	results := make(chan deleted, 4)
	for range cap(results) {
		go func() {
			exit, err := y.tasks.Delete(y.ctx, "c1")
			results <- deleted{exit, err}
		}()
	}
	told := 0
	for range cap(results) {
		if r := <-results; r.err != nil {
			require.True(t, errdefs.IsNotFound(r.err), "who came late: %v", r.err)
		} else {
			require.Equal(t, want, r.exit)
			told++
		}
	}
	require.Positive(t, told)
	require.Equal(t, 1, y.shim.Count(shimtest.KindRPC, "Delete"))
	y.empty()
}

// TestRootfsWithData: what cannot be emptied may be somebody's data. The bundle stays, the id is taken, the error says
// by what.
func TestRootfsWithData(t *testing.T) {
	setTimeout(t, shimproc.TimeoutCleanup, 500*time.Millisecond)
	y := runcYard(t, shimtest.Scenario{})
	_, err := y.tasks.Create(y.ctx, "c1", y.runcOpts("sleep"))
	require.NoError(t, err)
	data := filepath.Join(y.bundle("c1"), "rootfs", "precious")
	require.NoError(t, os.WriteFile(data, []byte("data"), 0o600))
	require.Equal(t, uint32(137), y.remove("c1").Status, "the task is deleted all the same")
	_, err = y.tasks.Get(y.ctx, "c1")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	_, err = y.tasks.Create(y.ctx, "c1", y.runcOpts("sleep"))
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	require.ErrorContains(t, err, filepath.Dir(data))
	y.restart()
	require.FileExists(t, data)
	require.NoError(t, os.Remove(data))
	y.empty()
	_, err = y.tasks.Create(y.ctx, "c1", y.runcOpts("sleep"))
	require.NoError(t, err)
	y.remove("c1")
	y.empty()
}

// TestShimDeleteFails after an orderly delete: nothing hangs on it, so it holds up nobody.
func TestShimDeleteFails(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Delete: shimtest.DeleteFaults{Fail: 1, FailText: "device busy"}})
	y.create("c1", "sleep")
	dir := y.bundle("c1")
	require.Equal(t, uint32(137), y.remove("c1").Status)
	y.empty()
	deletes := y.shim.Find(shimtest.KindExec, "delete")
	require.Len(t, deletes, 1)
	require.Equal(t, dir, deletes[0].Cwd, "it runs before the bundle goes")
}
