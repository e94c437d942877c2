// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// deadSocket leaves a socket file on which nobody listens.
func deadSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

// The names are the SHA-256 of ADDRESS/NAMESPACE/ID, and of that with /debug.
func TestSocketPaths(t *testing.T) {
	l := NewLauncher(LauncherConfig{GRPCAddress: "/run/containerd/containerd.sock", SocketDir: "/run/x"})
	const (
		main  = "6fe245f2dbeaade4b9f354af79f2371709f48a424ebdd71a6ab827fb4b2df3f0"
		debug = "2b54e87b0938ef442744a4f4271a3681f75877f6801d5a313acceccbd720047c"
	)
	require.ElementsMatch(t, []string{
		"/run/x/" + main, "/run/x/" + debug, "/run/containerd/s/" + main, "/run/containerd/s/" + debug,
	}, l.socketPaths("ns", []string{"id", ""}))
}

func TestRemoveSockets(t *testing.T) {
	dir := socketDir(t)
	l := NewLauncher(LauncherConfig{GRPCAddress: "/run/daemon.sock", SocketDir: dir})
	at := func(id string) string { return filepath.Join(dir, socketName("/run/daemon.sock/ns/"+id)) }
	extra := func(name string) string { return filepath.Join(dir, name) }

	for _, path := range []string{at("dead"), at("dead/debug"), at("group"), at("other"), extra("a"), extra("b")} {
		deadSocket(t, path)
	}
	living, err := net.Listen("unix", at("living"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = living.Close() })
	require.NoError(t, os.WriteFile(extra("file"), nil, 0o600))
	require.NoError(t, os.Symlink(at("other"), extra("link")))

	l.RemoveSockets("ns", []string{"dead", "living", "group", "", "never"},
		"unix://"+extra("a"), extra("b")+"\n", "unix://"+extra("file"), extra("link"), extra("missing"),
		"", "vsock://3:1", "relative", "unix://", "@abstract")

	for _, gone := range []string{at("dead"), at("dead/debug"), at("group"), extra("a"), extra("b")} {
		require.NoFileExists(t, gone)
	}
	for _, kept := range []string{at("other"), at("living"), extra("file"), extra("link")} {
		_, err := os.Lstat(kept)
		require.NoError(t, err)
	}
	conn, err := net.Dial("unix", at("living"))
	require.NoError(t, err)
	conn.Close()
}
