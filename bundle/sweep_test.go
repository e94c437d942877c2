// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSweepNothing(t *testing.T) {
	dir := t.TempDir()
	swept, err := Layout{State: filepath.Join(dir, "s"), Root: filepath.Join(dir, "r")}.Sweep(nil)
	require.NoError(t, err)
	require.Empty(t, swept)
	require.Empty(t, names(t, dir))
}

// TestSweepAfterReboot: the state directory is empty, the root directory is not.
func TestSweepAfterReboot(t *testing.T) {
	l := newLayout(t)
	for _, ns := range []string{testNS, "k8s.io"} {
		put(t, filepath.Join(l.Root, ns, "gone", "file"), "x")
		require.NoError(t, os.MkdirAll(filepath.Join(l.Root, ns, "live"), 0o711))
	}
	type instance struct{ ns, id string }
	var asked []instance
	swept, err := l.Sweep(func(ns, id string) bool {
		asked = append(asked, instance{ns, id})
		return id == "live"
	})
	require.NoError(t, err)
	require.ElementsMatch(t, []instance{{testNS, "gone"}, {testNS, "live"}, {"k8s.io", "gone"}, {"k8s.io", "live"}},
		asked)
	require.ElementsMatch(t, []string{filepath.Join(l.Root, testNS, "gone"), filepath.Join(l.Root, "k8s.io", "gone")},
		swept)
	require.Equal(t, []string{"live"}, names(t, filepath.Join(l.Root, testNS)))
	require.Equal(t, []string{"live"}, names(t, filepath.Join(l.Root, "k8s.io")))
}

func TestSweepKeepsWhatIsNotItsOwn(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	fill(t, b)
	elsewhere := t.TempDir()
	put(t, filepath.Join(elsewhere, "precious"), "x")
	var kept []string
	for _, top := range []string{l.State, l.Root} {
		for _, path := range []string{
			"._warm/file",
			testNS + "/._warm/file",
			testNS + "/.-other/file",
			testNS + "/.fileofstockform",
			testNS + "/bad name/file",
			testNS + "/plainfile",
			".hidden/.gone/file",
			"bad ns/.gone/file",
		} {
			kept = append(kept, filepath.Join(top, path))
			put(t, kept[len(kept)-1], "x")
		}
		kept = append(kept, filepath.Join(top, testNS, newLeftoverName("file")))
		put(t, kept[len(kept)-1], "x")
		require.NoError(t, os.Symlink(elsewhere, filepath.Join(top, testNS, newLeftoverName("linked"))))
		require.NoError(t, os.Symlink(elsewhere, filepath.Join(top, testNS, ".linked")))
		require.NoError(t, os.Symlink(elsewhere, filepath.Join(top, testNS, "linked")))
		require.NoError(t, os.Symlink(elsewhere, filepath.Join(top, "linked")))
	}
	swept, err := l.Sweep(nil)
	require.NoError(t, err)
	require.Empty(t, swept)
	for _, path := range kept {
		require.Equal(t, "x", content(t, path))
	}
	require.Equal(t, "x", content(t, filepath.Join(elsewhere, "precious")))
	require.Equal(t, "x", content(t, b.file(bootstrapFile)))
}

func TestSweepLeftovers(t *testing.T) {
	l := newLayout(t)
	elsewhere := t.TempDir()
	put(t, filepath.Join(elsewhere, "precious"), "x")
	var want []string
	for _, top := range []string{l.State, l.Root} {
		for _, name := range []string{".gone", newLeftoverName("gone")} {
			path := filepath.Join(top, testNS, name)
			put(t, filepath.Join(path, "a", "b"), "x")
			require.NoError(t, os.Symlink(elsewhere, filepath.Join(path, "link")))
			want = append(want, path)
		}
	}
	swept, err := l.Sweep(nil)
	require.NoError(t, err)
	require.ElementsMatch(t, want, swept)
	requireNothing(t, l)
	require.Equal(t, "x", content(t, filepath.Join(elsewhere, "precious")))
}

// TestSweepKeepsDataInRootfs: whoever renamed it so, and however it got there.
func TestSweepKeepsDataInRootfs(t *testing.T) {
	l := newLayout(t)
	mine := filepath.Join(l.State, testNS, ".kept", rootfsDir, "mine")
	put(t, mine, "precious")
	put(t, filepath.Join(l.State, testNS, ".gone", "file"), "x")
	swept, err := l.Sweep(nil)
	require.ErrorIs(t, err, ErrNotEmpty)
	require.ErrorContains(t, err, filepath.Join(l.State, testNS, ".kept"))
	require.Equal(t, []string{filepath.Join(l.State, testNS, ".gone")}, swept)
	require.Equal(t, "precious", content(t, mine))
}
