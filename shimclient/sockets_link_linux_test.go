// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Only the names that lead to the address go, whatever they are.
func TestRemoveLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := NewLauncher(LauncherConfig{GRPCAddress: "/run/c.sock", SocketDir: dir})
	gone, stays := "unix://"+filepath.Join(dir, "gone"), "unix://"+filepath.Join(dir, "stays")
	for id, address := range map[string]string{"a": gone, "b": gone, "c": stays} {
		require.NoError(t, l.LinkSocket("ns", id, address))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	l.RemoveLinks(gone)
	l.RemoveLinks("vsock://1:2")
	l.RemoveLinks("unix://" + filepath.Join(dir, "nowhere", "socket"))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.ElementsMatch(t, []string{socketName("/run/c.sock/ns/c"), "file"}, names)
}
