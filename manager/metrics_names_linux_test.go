// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/inspect"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestRuntimeLabel: a runtime whose name has resolved has it in the metrics, over a restart too. A name that never has,
// of a container that joins a sandbox's shim, is no label.
func TestRuntimeLabel(t *testing.T) {
	s := scrape(t)
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	bin := t.TempDir()
	require.NoError(t, os.Symlink(y.shim.Path, filepath.Join(bin, "containerd-shim-labelled-v1")))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	opts := y.opts("sleep")
	opts.Runtime = "io.containerd.labelled.v1"
	created := s.change("creates_total", "runtime", opts.Runtime, "result", "ok")
	y.start("c1", opts)
	y.box("s1")
	joined := y.inBox("s1")
	joined.Runtime = "io.containerd.never-there.v1"
	y.start("c2", joined)
	look := func() {
		require.Equal(t, 1.0, s.sum("instances", "runtime", opts.Runtime))
		require.Zero(t, s.sum("instances", "runtime", joined.Runtime))
		require.Equal(t, 2.0, s.sum("instances", "runtime", "unknown"), "the sandbox, and its container")
	}
	look()
	require.Equal(t, 1.0, created())
	require.Zero(t, s.sum("creates_total", "runtime", joined.Runtime))
	y.restart(func() {
		// The names of this process's metrics outlive the yard's daemon, so the next one finds others.
		opts.Runtime, joined.Runtime = "io.containerd.found.v1", "io.containerd.never-found.v1"
		y.changeRecord("c1", func(r map[string]any) { r["runtime"] = opts.Runtime })
		y.changeRecord("c2", func(r map[string]any) { r["runtime"] = joined.Runtime })
	})
	y.inState("c1", life.Running)
	y.inState("c2", life.Running)
	look()
	y.remove("c1")
	y.remove("c2")
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	y.empty()
}

// TestWarmShimsInMetrics: warm shims by what they do, and their processes under their runtime's name.
func TestWarmShimsInMetrics(t *testing.T) {
	s := scrape(t)
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	y.pooled("c1")
	y.pooled("c2")
	y.spares(1)
	count := func(state string) float64 {
		return s.sum("warm_shims", "state", state, "runtime", plugins.RuntimeRuncV2)
	}
	require.Equal(t, 1.0, count("idle"))
	require.Equal(t, 2.0, count("serving"))
	require.Equal(t, 3.0, s.sum("processes", "state", "connected", "runtime", plugins.RuntimeRuncV2))
	require.Zero(t, s.sum("processes", "runtime", "unknown"), "an idle one has a runtime, too")
	y.m.pool.distrust(y.instance("c2").process())
	require.Equal(t, 1.0, count("serving"))
	require.Equal(t, 1.0, count("retired"), "it goes on serving what it has")
	y.remove("c1")
	y.remove("c2")
}

// TestSilentInMetrics: an instance is counted in the state in which a list shows it.
func TestSilentInMetrics(t *testing.T) {
	s := scrape(t)
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	y.hurry("c1")
	shown := func() string {
		all := y.m.inspectAll(&inspect.ListRequest{})
		require.Len(t, all.Instances, 1)
		require.Equal(t, 1.0, s.sum("instances", "state", all.Instances[0].State), all.Instances[0].State)
		require.Equal(t, 1.0, s.sum("instances"))
		return all.Instances[0].State
	}
	require.Equal(t, inspect.StateRunning, shown())
	cont := y.silence("c1")
	require.Equal(t, inspect.StateUnresponsive, shown())
	y.restart()
	y.awaitSilence("c1")
	y.inState("c1", life.Restoring)
	require.Equal(t, inspect.StateUnresponsive, shown())
	cont()
	y.inState("c1", life.Running)
	y.remove("c1")
}
