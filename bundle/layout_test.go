// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestInitModes(t *testing.T) {
	for _, tc := range []struct {
		name                   string
		before, perm, expected os.FileMode
	}{
		{"tasks keep what is there", 0o700, 0o711, 0o700},
		{"but not what lets others write", 0o777, 0o711, 0o755},
		{"sandboxes are made private again", 0o755, 0o700, 0o700},
		{"missing, tasks", 0, 0o711, 0o711},
		{"missing, sandboxes", 0, 0o700, 0o700},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			l := Layout{State: filepath.Join(dir, "a", "state"), Root: filepath.Join(dir, "b", "root")}
			for _, d := range []string{l.State, l.Root} {
				if tc.before != 0 {
					require.NoError(t, os.MkdirAll(d, tc.before))
					require.NoError(t, os.Chmod(d, tc.before))
				}
			}
			require.NoError(t, l.Init(tc.perm))
			requireMode(t, l.State, os.ModeDir|tc.expected)
			requireMode(t, l.Root, os.ModeDir|tc.expected)
		})
	}
}

func TestLayoutMustBeAbsoluteAndTwoDirectories(t *testing.T) {
	dir := t.TempDir()
	for _, l := range []Layout{{}, {State: "state", Root: dir}, {State: dir, Root: "root"},
		{State: dir, Root: dir + "/"}} {
		require.True(t, errdefs.IsInvalidArgument(l.Init(0o711)), "%+v", l)
		_, err := l.Create(testNS, testID, CreateOptions{})
		require.True(t, errdefs.IsInvalidArgument(err), "%+v", l)
		_, err = l.Open(testNS, testID)
		require.True(t, errdefs.IsInvalidArgument(err), "%+v", l)
		_, err = l.List()
		require.True(t, errdefs.IsInvalidArgument(err), "%+v", l)
		_, err = l.Sweep(nil)
		require.True(t, errdefs.IsInvalidArgument(err), "%+v", l)
	}
	require.Empty(t, names(t, dir))
}

func TestValidateID(t *testing.T) {
	for _, id := range []string{"a", "A-1", "x.y_z-0", strings.Repeat("a", 76)} {
		require.NoError(t, ValidateID("k8s.io", id), id)
		require.NoError(t, ValidateID(id, "a"), id)
	}
	bad := []string{"", ".", "..", "../x", "a/b", "/a", ".a", "_a", "._a", "-a", "a..b", "a ", "a\n", "a\x00", "é",
		"a\\b", strings.Repeat("a", 77)}
	for _, id := range bad {
		require.True(t, errdefs.IsInvalidArgument(ValidateID("k8s.io", id)), "%q", id)
		require.True(t, errdefs.IsInvalidArgument(ValidateID(id, "a")), "%q", id)
	}

	l := newLayout(t)
	for _, id := range bad {
		_, err := l.Create(testNS, id, CreateOptions{})
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", id, err)
		_, err = l.Create(id, testID, CreateOptions{})
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", id, err)
		_, err = l.Open(testNS, id)
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", id, err)
	}
	require.Empty(t, names(t, l.State))
	require.Empty(t, names(t, l.Root))
}

func TestLeftoverNamesStayOutOfTheWay(t *testing.T) {
	a, b := newLeftoverName(testID), newLeftoverName(testID)
	require.NotEqual(t, a, b)
	require.True(t, isHidden(a))
	require.True(t, isLeftover(a))
	require.False(t, isStockLeftover(a), "it must never be the name that containerd's own removal needs for some id")
	require.Less(t, len(newLeftoverName(strings.Repeat("a", 76))), 255)

	require.True(t, isLeftover("."+testID))
	for _, name := range []string{"._a1b2", testID, ".", "..", ".a/b", ".-other"} {
		require.False(t, isLeftover(name), name)
	}
}

func TestOpen(t *testing.T) {
	l := newLayout(t)
	_, err := l.Open(testNS, testID)
	require.True(t, errdefs.IsNotFound(err), "%v", err)

	made := create(t, l, testID)
	b, err := l.Open(testNS, testID)
	require.NoError(t, err)
	require.Equal(t, made.Path, b.Path)
	require.Equal(t, []string{testNS, testID}, []string{b.Namespace, b.ID})
	require.Equal(t, filepath.Join(l.State, testNS, testID, "rootfs"), b.Rootfs())
	require.False(t, b.Empty())
	_, err = l.Open(testNS, "other")
	require.True(t, errdefs.IsNotFound(err), "%v", err)

	put(t, filepath.Join(l.State, testNS, "file"), "x")
	require.NoError(t, os.Symlink(b.Path, filepath.Join(l.State, testNS, "link")))
	require.NoError(t, os.Symlink(filepath.Join(l.State, testNS), filepath.Join(l.State, "linked")))
	for _, at := range [][2]string{{testNS, "file"}, {testNS, "link"}, {"linked", testID}} {
		_, err = l.Open(at[0], at[1])
		require.True(t, errdefs.IsFailedPrecondition(err), "%v: %v", at, err)
	}
}
