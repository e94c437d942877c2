// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// placeShim writes an executable into dir.
func placeShim(t *testing.T, dir, name string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755))
	return path
}

const (
	fooRuntime = "io.containerd.foo.v9"
	fooBinary  = "containerd-shim-foo-v9"
)

func requireResolved(t *testing.T, r *Resolver, runtime, path string) Binary {
	t.Helper()
	b, err := r.Resolve(runtime)
	require.NoError(t, err)
	require.Equal(t, runtime, b.Runtime)
	require.Equal(t, path, b.Path)
	id, err := IdentifyFile(path)
	require.NoError(t, err)
	require.Equal(t, id, b.File)
	return b
}

func requireUnresolved(t *testing.T, r *Resolver, runtime string, is func(error) bool, says ...string) {
	t.Helper()
	_, err := r.Resolve(runtime)
	require.True(t, is(err), "%v", err)
	for _, s := range says {
		require.ErrorContains(t, err, s)
	}
}

func TestResolveAbsolutePath(t *testing.T) {
	dir := t.TempDir()
	path := placeShim(t, dir, "any-name")
	r := NewResolver(nil)
	requireResolved(t, r, path, path)

	missing := filepath.Join(dir, "missing")
	requireUnresolved(t, r, missing, errdefs.IsNotFound, missing)
	requireUnresolved(t, r, dir, errdefs.IsNotFound, "not a regular file")
	require.NoError(t, os.Chmod(path, 0o644))
	requireUnresolved(t, r, path, errdefs.IsNotFound, "not executable")
}

func TestResolveName(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	t.Setenv("PATH", first+string(os.PathListSeparator)+second)
	r := NewResolver(nil)
	requireUnresolved(t, r, fooRuntime, errdefs.IsNotFound, fooRuntime, fooBinary, "PATH")

	inSecond := placeShim(t, second, fooBinary)
	requireResolved(t, r, fooRuntime, inSecond)
	requireResolved(t, r, "foo.v9", inSecond)

	// What cannot be executed does not hide what can, and is named if there is nothing else.
	require.NoError(t, os.Mkdir(filepath.Join(first, fooBinary), 0o755))
	requireResolved(t, NewResolver(nil), fooRuntime, inSecond)
	require.NoError(t, os.Remove(inSecond))
	requireUnresolved(t, NewResolver(nil), fooRuntime, errdefs.IsNotFound, filepath.Join(first, fooBinary),
		"not a regular file")
}

func TestResolveBesideTheDaemon(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	self, err := os.Executable()
	require.NoError(t, err)
	path := placeShim(t, filepath.Dir(self), fooBinary)
	t.Cleanup(func() { _ = os.Remove(path) })
	requireResolved(t, NewResolver(nil), fooRuntime, path)

	inPath := placeShim(t, os.Getenv("PATH"), fooBinary)
	requireResolved(t, NewResolver(nil), fooRuntime, inPath)
}

func TestResolveNeverInWorkingDirectory(t *testing.T) {
	dir := t.TempDir()
	placeShim(t, dir, fooBinary)
	placeShim(t, filepath.Join(dir, "sub"), fooBinary)
	t.Chdir(dir)
	for _, path := range []string{"", ".", "sub", ":sub:.:", "./sub"} {
		t.Setenv("PATH", path)
		requireUnresolved(t, NewResolver(nil), fooRuntime, errdefs.IsNotFound, fooBinary)
	}
}

func TestResolveMalformedNames(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, name := range []string{
		"", "runc", ".v2", ".runc.v2", "runc.", "io.containerd.", "io..v2", "./shim.v2", "sub/shim.v2", "../x.v2",
		"io.containerd/runc.v2", `io.a\b.v2`, "io.a.v2\x00",
	} {
		requireUnresolved(t, NewResolver(nil), name, errdefs.IsInvalidArgument)
	}
}

func TestResolveConfiguredPath(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	placeShim(t, dir, fooBinary)
	mine := placeShim(t, t.TempDir(), "my-shim")
	named := filepath.Join(dir, fooBinary)
	r := NewResolver(map[string]string{fooRuntime: mine, named: mine, "io.containerd.rel.v1": "rel/shim",
		"io.containerd.bar.v1": ""})
	requireResolved(t, r, fooRuntime, mine)
	requireResolved(t, r, named, mine)
	requireUnresolved(t, r, "io.containerd.rel.v1", errdefs.IsInvalidArgument, "absolute")
	requireUnresolved(t, r, "io.containerd.bar.v1", errdefs.IsNotFound, "containerd-shim-bar-v1")

	// Another binary of that name is not what the config asked for.
	require.NoError(t, os.Remove(mine))
	requireUnresolved(t, r, fooRuntime, errdefs.IsNotFound, mine)
}

func TestResolveSeesUpgradeAndRemoval(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	t.Setenv("PATH", dir+string(os.PathListSeparator)+other)
	path := placeShim(t, dir, fooBinary)
	r := NewResolver(nil)
	before := requireResolved(t, r, fooRuntime, path)
	require.Equal(t, before, requireResolved(t, r, fooRuntime, path))

	upgrade := placeShim(t, t.TempDir(), "new")
	require.NoError(t, os.Rename(upgrade, path))
	after := requireResolved(t, r, fooRuntime, path)
	require.NotEqual(t, before.File, after.File)

	elsewhere := placeShim(t, other, fooBinary)
	requireResolved(t, r, fooRuntime, path)
	require.NoError(t, os.Remove(path))
	requireResolved(t, r, fooRuntime, elsewhere)
	require.NoError(t, os.Remove(elsewhere))
	requireUnresolved(t, r, fooRuntime, errdefs.IsNotFound, fooBinary)
}

// TestResolveNamesake: to clean up after a shim whose binary is gone from where it was.
func TestResolveNamesake(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	gone := filepath.Join(t.TempDir(), "my-shim")
	r := NewResolver(map[string]string{fooRuntime: gone})
	_, err := r.ResolveNamesake(gone)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	require.ErrorContains(t, err, "my-shim")
	path := placeShim(t, dir, "my-shim")
	b, err := r.ResolveNamesake(gone)
	require.NoError(t, err)
	id, err := IdentifyFile(path)
	require.NoError(t, err)
	require.Equal(t, Binary{Runtime: gone, Path: path, File: id}, b)
	requireUnresolved(t, r, gone, errdefs.IsNotFound, gone) // not to start one
	for _, name := range []string{"", "my-shim", "./my-shim"} {
		_, err = r.ResolveNamesake(name)
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", name, err)
	}
}
