// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os"
	"runtime"
	"testing"
	"time"

	apitypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestPolicy: what is not allowed is neither started nor asked, and what runs from before is cleaned up all the same.
func TestPolicy(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	y.config.AllowedRuntimes = []string{"io.containerd.runc.v2"}
	y.restart()
	y.inState("c1", life.Running)
	before := y.shim.Count(shimtest.KindExec, "start") + y.shim.Count(shimtest.KindExec, "info")
	_, err := y.tasks.Create(y.ctx, "c2", y.opts("sleep"))
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	require.ErrorContains(t, err, y.shim.Path)
	_, err = y.tasks.PluginInfo(y.ctx, &apitypes.RuntimeRequest{RuntimePath: y.shim.Path})
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	err = y.boxes.Create(y.ctx, sandboxOf(y, "b1"))
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	require.Equal(t, before, y.shim.Count(shimtest.KindExec, "start")+y.shim.Count(shimtest.KindExec, "info"))
	y.remove("c1")
	y.empty()

	// Others could put another shim in the place of this one.
	require.NoError(t, os.Chmod(y.shim.Home, 0o777))
	y.config.AllowedRuntimes, y.config.BinaryCheck = nil, shimclient.CheckRefuse
	y.restart()
	_, err = y.tasks.Create(y.ctx, "c2", y.opts("sleep"))
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	y.empty()
}

// TestRuntimeEnv: the environment of a runtime's section is there for start and for delete.
func TestRuntimeEnv(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{})
	y.config.Runtimes[y.shim.Path] = RuntimeConfig{Env: []string{"GOMAXPROCS=7"}, Cleanup: CleanupAlways}
	y.boot()
	y.run("c1", "sleep")
	y.remove("c1")
	for _, action := range []string{"start", "delete"} {
		found := y.shim.Find(shimtest.KindExec, action)
		require.NotEmpty(t, found)
		require.Contains(t, found[0].Env, "GOMAXPROCS=7", action)
	}
	y.empty()
}

// TestPolicyOfSpares: a spare is started long after the create that made it wanted, so that its binary is looked at
// then.
func TestPolicyOfSpares(t *testing.T) {
	y := coldPoolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1})
	y.config.BinaryCheck = shimclient.CheckRefuse
	y.boot()
	y.pooled("c1")
	y.spares(1)
	spec, starts, dirs := y.warm("c1").spec, y.starts(), y.warmDirs()
	require.NoError(t, os.Chmod(y.shim.Home, 0o777))
	_, err := y.m.pool.spare(y.m.ctx, spec)
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	require.Equal(t, starts, y.starts())
	require.ElementsMatch(t, dirs, y.warmDirs())

	require.NoError(t, os.Chmod(y.shim.Home, 0o700))
	y.remove("c1")
}

// TestPolicyAfterTheTurn: a create waits for its turn, and its binary is looked at once more after that. A refusal says
// nothing of whether the shim can serve again.
func TestPolicyAfterTheTurn(t *testing.T) {
	y := coldPoolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1})
	y.config.BinaryCheck = shimclient.CheckRefuse
	y.boot()
	var turns []*shimclient.Turn
	for range 2 * runtime.GOMAXPROCS(0) {
		_, turn, err := y.m.launcher.TakeTurn(y.ctx)
		require.NoError(t, err)
		turn.Within(time.Hour)
		turns = append(turns, turn)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := y.tasks.Create(y.ctx, "c1", y.runcOpts("sleep"))
		failed <- err
	}()
	y.until("the create waits for its turn", func() bool { return y.m.launcher.Waiting() == 1 })
	require.NoError(t, os.Chmod(y.shim.Home, 0o777))
	for _, turn := range turns {
		turn.End()
	}
	err := <-failed
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	require.Zero(t, y.starts())
	require.NoError(t, os.Chmod(y.shim.Home, 0o700))
	y.pooled("c1")
	y.warm("c1")
	y.remove("c1")
}
