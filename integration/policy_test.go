// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// refused requires that a container cannot have a task, and that the caller is told why.
func (n *node) refused(b *box, why string) {
	n.t.Helper()
	_, err := b.NewTask(b.ctx, cio.NullIO)
	require.True(n.t, errdefs.IsPermissionDenied(err), "%v", err)
	require.ErrorContains(n.t, err, why)
	b.noTask()
	b.remove()
}

// TestAllowedRuntimes: the config's list is all that clients may have started, by name or by path. What was started
// before goes on and can be ended.
func TestAllowedRuntimes(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir, path := privateShim(t)
	n := newNode(t, func(o *daemon.Options) { o.Path = append([]string{dir}, o.Path...) })
	before := n.run("before", forever(), withRuntime(path))
	n.Stop()
	const names = "'io.containerd.runc.*', '/no/such/*'"
	n.Reconfigure(withShimConfig("\nallowed_runtimes = [" + names + "]\n"))
	n.Run()
	n.refused(n.create("by-path", forever(), withRuntime(path)), "allowed_runtimes")
	n.run("by-name", forever()).finish()
	before = n.taskOf(before.ID())
	before.finish()

	n.Stop()
	n.Reconfigure(func(o *daemon.Options) { o.Extra = strings.Replace(o.Extra, names, "'"+dir+"/*'", 1) })
	n.Run()
	n.run("by-path", forever(), withRuntime(path)).finish()
}

// TestBinaryCheck: a shim that others could replace is started with a warning, once for all its starts, or not at all.
func TestBinaryCheck(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const warning = "others could replace this shim binary"
	dir, _ := privateShim(t)
	require.NoError(t, os.Chmod(dir, 0o777))
	n := newNode(t, func(o *daemon.Options) { o.Path = []string{dir} })
	n.run("one", forever()).finish()
	n.run("two", forever()).finish()
	require.Equal(t, 1, strings.Count(n.Log(), warning))

	n.Stop()
	n.Reconfigure(withShimConfig("\nbinary_check = 'refuse'\n"))
	n.Run()
	n.refused(n.create("open", forever()), dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	n.run("closed", forever()).finish()

	// A link in a directory of others' leads to a binary that is nobody else's.
	open := t.TempDir()
	require.NoError(t, os.Chmod(open, 0o777))
	shim := filepath.Base(kit.shim)
	require.NoError(t, os.Symlink(filepath.Join(dir, shim), filepath.Join(open, shim)))
	n.refused(n.create("linked", forever(), withRuntime(filepath.Join(open, shim))), open)
}
