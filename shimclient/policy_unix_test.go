// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestPolicyAllows(t *testing.T) {
	for _, c := range []struct {
		allowed       []string
		runtime, path string
		want          bool
	}{
		{nil, "io.containerd.runc.v2", "/usr/bin/containerd-shim-runc-v2", true},
		{[]string{"io.containerd.runc.v2"}, "io.containerd.runc.v2", "/usr/bin/containerd-shim-runc-v2", true},
		{[]string{"io.containerd.runc.v2"}, "io.containerd.kata.v2", "/usr/bin/containerd-shim-kata-v2", false},
		{[]string{"io.containerd.*"}, "io.containerd.kata.v2", "/usr/bin/containerd-shim-kata-v2", true},
		{[]string{"/opt/*/bin/containerd-shim-*"}, "/opt/kata/bin/containerd-shim-kata-v2",
			"/opt/kata/bin/containerd-shim-kata-v2", true},
		{[]string{"/opt/*"}, "/opt/kata/bin/evil", "/opt/kata/bin/evil", false}, // a star stands for no slash
		{[]string{"/usr/bin/*"}, "io.containerd.runc.v2", "/usr/bin/containerd-shim-runc-v2", true},
	} {
		p, err := NewPolicy(c.allowed, CheckOff)
		require.NoError(t, err)
		err = p.Admit(t.Context(), Binary{Runtime: c.runtime, Path: c.path})
		require.Equal(t, c.want, err == nil, "%v of %s: %v", c.allowed, c.runtime, err)
		if err != nil {
			require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
			require.Contains(t, err.Error(), c.runtime)
			require.Contains(t, err.Error(), "allowed_runtimes")
		}
	}
	_, err := NewPolicy([]string{"io.[containerd"}, CheckOff)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
}

// trustedDir is a directory that nobody but root can replace, for a test that needs root.
func trustedDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make files of others")
	}
	base, err := os.MkdirTemp("/var", "sy-policy-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	require.NoError(t, os.Chmod(base, 0o755))
	return base
}

// TestPolicyOwners: whoever can change the file, or a directory on the way to it or to where a link leads, could start
// what they like.
func TestPolicyOwners(t *testing.T) {
	base := trustedDir(t)
	dir := filepath.Join(base, "a", "b")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	shim := filepath.Join(dir, "shim")
	require.NoError(t, os.WriteFile(shim, nil, 0o755))
	require.NoError(t, checkOwners(shim))

	for _, c := range []struct {
		name   string
		path   string
		spoil  func(path string) error
		repair func(path string) error
	}{
		{"the file is writable", shim, chmod(0o777), chmod(0o755)},
		{"its directory is writable", dir, chmod(0o757), chmod(0o755)},
		{"a directory further up is writable", filepath.Dir(dir), chmod(0o777), chmod(0o755)},
		{"a group may write", dir, func(p string) error { return firstOf(os.Chown(p, 0, 50), os.Chmod(p, 0o775)) },
			func(p string) error { return firstOf(os.Chown(p, 0, 0), os.Chmod(p, 0o755)) }},
		{"the file is another's", shim, func(p string) error { return os.Chown(p, 65534, 0) },
			func(p string) error { return os.Chown(p, 0, 0) }},
		{"its directory is another's", dir, func(p string) error { return os.Chown(p, 65534, 0) },
			func(p string) error { return os.Chown(p, 0, 0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.NoError(t, c.spoil(c.path))
			err := checkOwners(shim)
			require.Error(t, err)
			require.Contains(t, err.Error(), c.path)
			refuse, perr := NewPolicy(nil, CheckRefuse)
			require.NoError(t, perr)
			err = refuse.Admit(t.Context(), Binary{Runtime: "r.v1", Path: shim})
			require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
			require.Contains(t, err.Error(), "binary_check")
			warn, perr := NewPolicy(nil, CheckWarn)
			require.NoError(t, perr)
			require.NoError(t, warn.Admit(t.Context(), Binary{Runtime: "r.v1", Path: shim}))
			require.Len(t, warn.warned, 1)
			require.NoError(t, c.repair(c.path))
			require.NoError(t, checkOwners(shim))
			require.NoError(t, refuse.Admit(t.Context(), Binary{Runtime: "r.v1", Path: shim}), "nothing is remembered")
		})
	}
}

// TestPolicyLinks: a link is as good as the directory that it is in, and so is each one that it leads to, of the file
// and of directories on the way.
func TestPolicyLinks(t *testing.T) {
	base := trustedDir(t)
	in := func(names ...string) string { return filepath.Join(append([]string{base}, names...)...) }
	for _, dir := range []string{"good", "one", "two", "three", "far", "far/bin"} {
		require.NoError(t, os.Mkdir(in(dir), 0o755))
	}
	for _, shim := range []string{in("good", "shim"), in("far", "bin", "shim")} {
		require.NoError(t, os.WriteFile(shim, nil, 0o755))
	}
	for link, to := range map[string]string{
		in("one", "shim"):   in("good", "shim"),
		in("two", "shim"):   in("one", "shim"),
		in("three", "shim"): "../two/./shim",                       // three links, the first relative
		in("one", "bin"):    in("far", "bin"),                      // of a directory
		in("two", "bin"):    "..//one/bin",                         // two of a directory
		in("three", "back"): in("two", "bin", "..", "bin", "shim"), // .. is of where the links lead to
		in("good", "a"):     "b",
		in("good", "b"):     "a",
	} {
		require.NoError(t, os.Symlink(to, link))
	}
	for _, c := range []struct {
		path string
		ways []string // the directories that it leads through
	}{
		{in("one", "shim"), []string{"one", "good"}},
		{in("two", "shim"), []string{"two", "one", "good"}},
		{in("three", "shim"), []string{"three", "two", "one", "good"}},
		{in("one", "bin", "shim"), []string{"one", "far", "far/bin"}},
		{in("two", "bin", "shim"), []string{"two", "one", "far", "far/bin"}},
		{in("three", "back"), []string{"three", "two", "one", "far", "far/bin"}},
	} {
		require.NoError(t, checkOwners(c.path))
		for _, dir := range []string{"good", "one", "two", "three", "far", "far/bin"} {
			spoilt := func(by string) {
				if err := checkOwners(c.path); slices.Contains(c.ways, dir) {
					require.ErrorContains(t, err, in(dir), "%s %s", c.path, by)
				} else {
					require.NoError(t, err, "%s does not lead through %s", c.path, dir)
				}
			}
			require.NoError(t, os.Chmod(in(dir), 0o777))
			spoilt("where others may write")
			require.NoError(t, os.Chmod(in(dir), 0o755))
			require.NoError(t, os.Chown(in(dir), 65534, 0))
			spoilt("which is another's")
			require.NoError(t, os.Chown(in(dir), 0, 0))
		}
	}
	require.ErrorContains(t, checkOwners(in("good", "a")), "too many links")
	require.ErrorIs(t, checkOwners(in("good", "none")), os.ErrNotExist)
}

func chmod(mode os.FileMode) func(string) error {
	return func(path string) error { return os.Chmod(path, mode) }
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestPolicyInAStickyDirectory: others can make entries there, and replace only their own.
func TestPolicyInAStickyDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make files of others")
	}
	sticky := t.TempDir()
	require.NoError(t, os.Chmod(sticky, os.ModeSticky|0o777))
	dir := filepath.Join(sticky, "ours")
	require.NoError(t, os.Mkdir(dir, 0o755))
	shim := filepath.Join(dir, "shim")
	require.NoError(t, os.WriteFile(shim, nil, 0o755))
	require.NoError(t, checkOwners(shim))

	link := filepath.Join(sticky, "link")
	require.NoError(t, os.Symlink(shim, link))
	require.NoError(t, checkOwners(link))
	require.NoError(t, os.Lchown(link, 65534, 0))
	require.ErrorContains(t, checkOwners(link), link, "another user may let it lead elsewhere")

	require.NoError(t, os.Chown(dir, 65534, 0))
	require.ErrorContains(t, checkOwners(shim), dir)
	require.NoError(t, os.Chown(dir, 0, 0))
	require.NoError(t, os.Chmod(sticky, 0o777))
	require.ErrorContains(t, checkOwners(shim), sticky, "without the bit others may replace the directory")
}
