// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bundle

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func modeOf(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	require.NoError(t, err)
	return info.Mode().Perm()
}

// withUmask runs f under a umask that takes nothing away, or everything.
func withUmask(t *testing.T, mask int, f func()) {
	t.Helper()
	before := unix.Umask(mask)
	defer unix.Umask(before)
	f()
}

// TestCVE202141103: a bundle is passable for its owner alone, and for the container's root group where that is
// remapped, whatever the umask. (https://github.com/containerd/containerd/security/advisories/GHSA-c2h3-6mxw-7mvq)
func TestCVE202141103(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o777} {
		for _, c := range []struct {
			gid  uint32
			want os.FileMode
		}{{0, 0o700}, {4242, 0o710}} {
			if c.gid != 0 && os.Geteuid() != 0 {
				continue
			}
			dir := t.TempDir()
			l := Layout{State: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root")}
			require.NoError(t, l.Init(0o711))
			var b *Bundle
			var err error
			withUmask(t, mask, func() { b, err = l.Create("ns", "c1", CreateOptions{Spec: []byte("{}"), GID: c.gid}) })
			require.NoError(t, err, "umask %04o", mask)
			require.Equal(t, c.want, modeOf(t, b.Path), "umask %04o, gid %d", mask, c.gid)
			require.NoError(t, b.Remove())
		}
	}
}

// TestCVE202425621: directories that an upgrade finds open are closed again, at the start of the daemon or, where they
// were opened later, with the next create in them.
// (https://github.com/containerd/containerd/security/advisories/GHSA-pwhc-rpq9-4c8w)
func TestCVE202425621(t *testing.T) {
	for _, c := range []struct{ perm, top, ns os.FileMode }{
		{0o700, 0o700, 0o755}, // of sandboxes
		{0o711, 0o755, 0o755}, // of tasks; what others may read is as it was
	} {
		dir := t.TempDir()
		l := Layout{State: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root")}
		open := func(paths ...string) {
			for _, d := range paths {
				require.NoError(t, os.Chmod(d, 0o777))
			}
		}
		spaces := []string{filepath.Join(l.State, testNS), filepath.Join(l.Root, testNS)}
		for _, d := range spaces {
			require.NoError(t, os.MkdirAll(d, 0o755))
			open(filepath.Dir(d), d)
		}
		host := filepath.Join(dir, "host")
		require.NoError(t, os.Mkdir(host, 0o755))
		open(host)
		require.NoError(t, os.Symlink(host, filepath.Join(l.State, "link")))

		require.NoError(t, l.Init(c.perm))
		for _, d := range spaces {
			require.Equal(t, c.top, modeOf(t, filepath.Dir(d)))
			require.Equal(t, c.ns, modeOf(t, d))
		}
		require.Equal(t, os.FileMode(0o777), modeOf(t, host), "it is only linked to")

		open(spaces...)
		b, err := l.Create(testNS, testID, CreateOptions{})
		require.NoError(t, err)
		for _, d := range spaces {
			require.Equal(t, c.ns, modeOf(t, d))
		}
		require.NoError(t, b.Remove())
	}
}

// TestModesOfParents: they are what they are said to be, whatever the umask.
func TestModesOfParents(t *testing.T) {
	for _, mask := range []int{0, 0o777} {
		dir := t.TempDir()
		withUmask(t, mask, func() {
			l := Layout{State: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root")}
			require.NoError(t, l.Init(0o711))
			b, err := l.Create(testNS, testID, CreateOptions{})
			require.NoError(t, err)
			for _, d := range []string{l.State, l.Root, filepath.Dir(b.Path), filepath.Join(l.Root, testNS)} {
				require.Equal(t, os.FileMode(0o711), modeOf(t, d), "%s, umask %04o", d, mask)
			}
			require.NoError(t, b.Remove())
		})
	}
}
