// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// reserved requires that the id of a deleted task is taken as long as its shim lingers, and that the task itself is
// gone.
func (y *yard) reserved(id string) {
	y.Helper()
	_, err := y.tasks.Get(y.ctx, id)
	require.True(y, errdefs.IsNotFound(err), "Get: %v", err)
	tasks, err := y.tasks.Tasks(y.ctx, true)
	require.NoError(y, err)
	require.Empty(y, tasks)
	setTimeout(y.T, shimproc.TimeoutCleanup, 100*time.Millisecond)
	_, err = y.tasks.Create(y.ctx, id, y.opts("sleep"))
	require.True(y, errdefs.IsAlreadyExists(err), "%v", err)
	require.ErrorContains(y, err, "said yes to its shutdown")
	setTimeout(y.T, shimproc.TimeoutCleanup, time.Minute)
	require.DirExists(y, y.bundle(id))
	require.Len(y, y.shim.Procs(shimtest.RoleDaemon), 1, "it is not ended in haste")
}

// TestLingeringShim: a shim that said yes to its Shutdown and goes on keeps the id, over a restart of the daemon too: a
// task that joined it by its socket would end with it.
func TestLingeringShim(t *testing.T) {
	for name, s := range map[string]shimtest.Scenario{
		"serves on": {Linger: true},
		"closed": {Linger: true, Rules: []shimtest.Rule{{Method: "Shutdown", After: true, Unlisten: true,
			Drop: true}}},
		"pid unknown": {Linger: true, ShimPid: 1},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, s)
			task := y.run("c1", "exit", "7")
			_, err := task.Wait(y.ctx)
			require.NoError(t, err)
			setTimeout(t, shimproc.TimeoutShutdown, 500*time.Millisecond)
			exit, err := y.tasks.Delete(y.ctx, "c1")
			require.NoError(t, err)
			require.Equal(t, uint32(7), exit.Status)
			y.reserved("c1")
			y.restart()
			y.reserved("c1")
			y.shim.Update(func(s *shimtest.Scenario) { *s = shimtest.Scenario{} })
			require.Equal(t, []string{"c1", ""}, idsOf(y.exitsOf("c1")), "each once")
			y.shim.AwaitNoProcs()
			y.run("c1", "sleep")
			require.Equal(t, uint32(137), y.remove("c1").Status)
			y.empty()
		})
	}
}

// TestLingeringShimIsEnded after a while: it serves nobody.
func TestLingeringShimIsEnded(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Linger: true})
	y.kill(y.run("c1", "sleep"))
	setTimeout(t, shimproc.TimeoutShutdown, 300*time.Millisecond)
	setTimeout(t, shimproc.TimeoutCleanup, 300*time.Millisecond)
	_, err := y.tasks.Delete(y.ctx, "c1")
	require.NoError(t, err)
	setTimeout(t, shimproc.TimeoutCleanup, time.Minute)
	y.empty()
	require.Empty(t, y.shim.Procs())
	require.Equal(t, []string{"c1", ""}, idsOf(y.exitsOf("c1")), "each once")
}

// TestLingeringSandbox: its shim ends by itself too, and keeps the id until it does.
func TestLingeringSandbox(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true, Linger: true})
	y.box("s1")
	setTimeout(t, shimproc.TimeoutShutdown, 300*time.Millisecond)
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	y.unknownBox("s1")
	setTimeout(t, shimproc.TimeoutCleanup, 100*time.Millisecond)
	err := y.boxes.Create(y.ctx, sandboxOf(y, "s1"))
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	setTimeout(t, shimproc.TimeoutCleanup, time.Minute)
	y.restart()
	y.unknownBox("s1")
	require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 1)
	y.shim.Update(func(s *shimtest.Scenario) { s.Linger = false })
	y.empty()
	y.shim.AwaitNoProcs()
}
