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

// TestCVE202015257SocketDir: nobody else can put a socket where shims put theirs, nor reach one there.
// (https://github.com/containerd/containerd/security/advisories/GHSA-36xw-fx78-c5r4)
func TestCVE202015257SocketDir(t *testing.T) {
	base := t.TempDir()
	mode := func(path string) os.FileMode {
		info, err := os.Lstat(path)
		require.NoError(t, err)
		return info.Mode().Perm()
	}
	dir := filepath.Join(base, "a", "b", "s")
	require.NoError(t, SecureSocketDir(dir))
	require.Equal(t, os.FileMode(0o700), mode(dir))
	require.NoError(t, os.Chmod(dir, 0o777)) // as an upgrade may find it
	require.NoError(t, SecureSocketDir(dir))
	require.Equal(t, os.FileMode(0o700), mode(dir))

	link := filepath.Join(base, "link")
	require.NoError(t, os.Symlink(dir, link))
	file := filepath.Join(base, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{link, file} {
		err := SecureSocketDir(path)
		require.True(t, errdefs.IsFailedPrecondition(err), "%s: %v", path, err)
		require.ErrorContains(t, err, path)
	}
	if os.Geteuid() != 0 {
		return
	}
	require.NoError(t, os.Chown(dir, 65534, 0))
	err := SecureSocketDir(dir)
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	require.ErrorContains(t, err, "65534")
}
