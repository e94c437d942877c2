// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestShimBinary(t *testing.T) {
	b := create(t, newLayout(t), testID)
	_, err := b.ShimBinary()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	for _, path := range []string{"/usr/bin/containerd-shim-runc-v2", `C:\Program Files\shim.exe`,
		"/opt/with space/é"} {
		require.NoError(t, b.WriteShimBinary(path))
		got, err := b.ShimBinary()
		require.NoError(t, err)
		require.Equal(t, path, got)
		require.Equal(t, path, content(t, b.file("shim-binary-path")),
			"no line end: containerd takes the file as it is")
		requireMode(t, b.file("shim-binary-path"), 0o600)
	}
	for _, bad := range []string{"", " ", "/a\n", "/a\x00b", "/\xff"} {
		require.True(t, errdefs.IsInvalidArgument(b.WriteShimBinary(bad)), "%q", bad)
	}
	put(t, b.file("shim-binary-path"), "")
	_, err = b.ShimBinary()
	require.True(t, errdefs.IsNotFound(err), "as for containerd: %v", err)
	for _, bad := range []string{"/a\nb", "\x00\x00", "/\xff"} {
		put(t, b.file("shim-binary-path"), bad)
		_, err = b.ShimBinary()
		require.ErrorIs(t, err, ErrForeign, "%q", bad)
	}
}

func TestSandbox(t *testing.T) {
	b := create(t, newLayout(t), testID)
	_, err := b.Sandbox()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	require.NoError(t, b.WriteSandbox("pod-1"))
	got, err := b.Sandbox()
	require.NoError(t, err)
	require.Equal(t, "pod-1", got)
	require.Equal(t, "pod-1", content(t, b.file("sandbox")))
	requireMode(t, b.file("sandbox"), 0o600)
	for _, bad := range []string{"", "a/b", "../x"} {
		require.True(t, errdefs.IsInvalidArgument(b.WriteSandbox(bad)), "%q", bad)
	}
	put(t, b.file("sandbox"), "")
	_, err = b.Sandbox()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	put(t, b.file("sandbox"), "../x")
	_, err = b.Sandbox()
	require.ErrorIs(t, err, ErrForeign)
}

func TestPids(t *testing.T) {
	b := create(t, newLayout(t), testID)
	for name, read := range map[string]func() (int, error){"init.pid": func() (int, error) {
		pid, _,
			err := b.InitPid()
		return pid, err
	}, "shim.pid": b.ShimPid} {
		_, err := read()
		require.True(t, errdefs.IsNotFound(err), "%v", err)
		for _, good := range []string{"42", "42\n"} {
			put(t, b.file(name), good)
			pid, err := read()
			require.NoError(t, err)
			require.Equal(t, 42, pid)
		}
		put(t, b.file(name), "")
		_, err = read()
		require.True(t, errdefs.IsNotFound(err), "not written yet: %v", err)
		for _, bad := range []string{"0", "-1", "x", "4 2", "0x2a", "4294967296", "99999999999999999999",
			strings.Repeat("1", 1000)} {
			put(t, b.file(name), bad)
			_, err = read()
			require.ErrorIs(t, err, ErrForeign, bad)
			require.Less(t, len(err.Error()), 500)
		}
	}
}

func TestSocketDir(t *testing.T) {
	b := create(t, newLayout(t), testID)
	_, err := b.SocketDir()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	for target, want := range map[string]string{
		"/run/containerd/s":  "/run/containerd/s",
		"/run/containerd/s/": "/run/containerd/s",
		"sockets":            filepath.Join(b.Path, "sockets"),
		"../../s":            filepath.Join(b.Path, "..", "..", "s"),
	} {
		require.NoError(t, os.Symlink(target, b.file("s")))
		got, err := b.SocketDir()
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.NoError(t, os.Remove(b.file("s")))
	}
	put(t, b.file("s"), "/run")
	_, err = b.SocketDir()
	require.ErrorIs(t, err, ErrForeign)
}

// TestReadOnlyRegularFiles: what is not a file is not read, and a link is not followed, whatever is behind it.
func TestReadOnlyRegularFiles(t *testing.T) {
	b := create(t, newLayout(t), testID)
	good := filepath.Join(t.TempDir(), "good")
	put(t, good, "42")
	for what, make := range map[string]func(path string) error{
		"dir":  func(path string) error { return os.Mkdir(path, 0o700) },
		"link": func(path string) error { return os.Symlink(good, path) },
	} {
		for name, read := range reads(b) {
			require.NoError(t, make(b.file(name)))
			require.ErrorIs(t, read(), ErrForeign, "%s %s", name, what)
			require.NoError(t, os.Remove(b.file(name)))
		}
	}
}

func reads(b *Bundle) map[string]func() error {
	return map[string]func() error{
		bootstrapFile:  func() error { _, err := b.ReadBootstrap(); return err },
		addressFile:    func() error { _, err := b.ReadBootstrap(); return err },
		recordFile:     func() error { _, err := b.ReadRecord(); return err },
		shimBinaryFile: func() error { _, err := b.ShimBinary(); return err },
		sandboxFile:    func() error { _, err := b.Sandbox(); return err },
		initPidFile:    func() error { _, _, err := b.InitPid(); return err },
		shimPidFile:    func() error { _, err := b.ShimPid(); return err },
	}
}

func TestShimExit(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	_, err := b.ShimExit()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	put(t, b.file(exitFile), `{"Timestamp":"2026-01-02T03:04:05.6Z","Pid":42,"Status":7}`)
	e, err := b.ShimExit()
	require.NoError(t, err)
	require.Equal(t, &Exit{Pid: 42, Status: 7, At: time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC)}, e)
	for _, damaged := range []string{"", "{", "[]", `{"Pid":0,"Status":7}`, `{"Pid":-1}`, `{"Pid":4294967296}`,
		`{"Pid":1,"Status":-1}`} {
		put(t, b.file(exitFile), damaged)
		_, err = b.ShimExit()
		require.ErrorIs(t, err, ErrForeign, "%q", damaged)
	}
}

func TestRuncOptions(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	_, err := b.RuncOptions()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	put(t, b.file(optionsFile), `{"root":"/run/other"}`)
	o, err := b.RuncOptions()
	require.NoError(t, err)
	require.Equal(t, "/run/other", o.Root)
	for _, damaged := range []string{"", "{", "[]"} {
		put(t, b.file(optionsFile), damaged)
		_, err = b.RuncOptions()
		require.ErrorIs(t, err, ErrForeign, "%q", damaged)
	}
}
