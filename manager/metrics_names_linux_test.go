// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

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
	require.Equal(t, 1.0, s.sum("creates_total", "runtime", opts.Runtime, "result", "ok"))
	require.Zero(t, s.sum("creates_total", "runtime", joined.Runtime))
	y.hurry("c1", "c2")
	look()
	y.remove("c1")
	y.remove("c2")
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	y.empty()
}
