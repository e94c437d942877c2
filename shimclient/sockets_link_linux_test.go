// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// listening makes a socket with somebody behind it.
func listening(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
}

func TestLinkSocket(t *testing.T) {
	dir := socketDir(t)
	l := NewLauncher(LauncherConfig{GRPCAddress: "/run/daemon.sock", SocketDir: dir})
	at := func(id string) string { return filepath.Join(dir, socketName("/run/daemon.sock/ns/"+id)) }
	warm, other := filepath.Join(dir, "warm"), filepath.Join(dir, "other")
	listening(t, warm)
	listening(t, other)
	leadsTo := func(id, want string) {
		t.Helper()
		got, err := filepath.EvalSymlinks(at(id))
		require.NoError(t, err)
		require.Equal(t, want, got)
		conn, err := net.Dial("unix", at(id))
		require.NoError(t, err)
		conn.Close()
	}
	for name, before := range map[string]func(path string){
		"nothing":       func(string) {},
		"dead":          func(path string) { deadSocket(t, path) },
		"dangling link": func(path string) { require.NoError(t, os.Symlink("nowhere", path)) },
		"another link":  func(path string) { require.NoError(t, os.Symlink("other", path)) },
		"its own link":  func(path string) { require.NoError(t, os.Symlink("warm", path)) },
	} {
		before(at(name))
		require.NoError(t, l.LinkSocket("ns", name, "unix://"+warm), name)
		leadsTo(name, warm)
	}
	require.NoError(t, l.LinkSocket("ns", "bare", warm))
	leadsTo("bare", warm)

	for name, before := range map[string]func(path string){
		"living": func(path string) { listening(t, path) },
		"a file": func(path string) { require.NoError(t, os.WriteFile(path, nil, 0o600)) },
		"a dir":  func(path string) { require.NoError(t, os.Mkdir(path, 0o700)) },
	} {
		before(at(name))
		info, err := os.Lstat(at(name))
		require.NoError(t, err)
		err = l.LinkSocket("ns", name, "unix://"+warm)
		require.True(t, errdefs.IsAlreadyExists(err), "%s: %v", name, err)
		l.UnlinkSocket("ns", name, "unix://"+warm)
		still, err := os.Lstat(at(name))
		require.NoError(t, err)
		require.True(t, os.SameFile(info, still), name)
	}
	for _, address := range []string{"", "vsock://3:1", "@abstract", "unix://@abstract", "relative",
		"npipe:////./pipe/x"} {
		err := l.LinkSocket("ns", "nowhere", address)
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", address, err)
		l.UnlinkSocket("ns", "nowhere", address)
	}
	require.Error(t, l.LinkSocket("ns", "c1", filepath.Join(dir, "missing", "s")))

	l.UnlinkSocket("ns", "bare", "unix://"+other)
	leadsTo("bare", warm) // it is somebody else's by now
	l.UnlinkSocket("ns", "bare", "unix://"+warm)
	require.NoFileExists(t, at("bare"))
	l.UnlinkSocket("ns", "bare", "unix://"+warm)
	leadsTo("nothing", warm)
}

func TestFollowed(t *testing.T) {
	dir := socketDir(t)
	warm, near, far := filepath.Join(dir, "warm"), filepath.Join(dir, "near"), filepath.Join(dir, "far")
	listening(t, warm)
	require.NoError(t, os.Symlink("warm", near))
	require.NoError(t, os.Symlink(warm, far))
	for _, c := range []struct{ protocol, from, to string }{
		{protocolTTRPC, "unix://" + near, "unix://" + warm},
		{protocolTTRPC, "unix://" + far, "unix://" + warm},
		{protocolGRPC, "unix://" + near, "unix://" + warm},
		{protocolGRPC, near, warm},
		{protocolTTRPC, near, "unix://" + warm},
		{protocolTTRPC, "unix://" + warm, "unix://" + warm},
		{protocolGRPC, warm, warm},
		{protocolTTRPC, "unix://" + filepath.Join(dir, "missing"), "unix://" + filepath.Join(dir, "missing")},
		{protocolTTRPC, "unix://@abstract", "unix://@abstract"},
		{protocolTTRPC, "shim/abstract.sock", "shim/abstract.sock"},
		{protocolTTRPC, "vsock://3:1024", "vsock://3:1024"},
		{protocolTTRPC, "hvsock://" + near + ":1024", "hvsock://" + near + ":1024"},
	} {
		e := Endpoint{Protocol: c.protocol, Address: c.from, Version: 3}
		require.Equal(t, Endpoint{Protocol: c.protocol, Address: c.to, Version: 3}, e.Followed())
	}
	require.Equal(t, Endpoint{}, Endpoint{}.Followed())
}

func TestHasChildren(t *testing.T) {
	has := func(id ProcessID) bool {
		is, err := id.HasChildren(t.Context())
		require.NoError(t, err)
		return is
	}
	require.False(t, has(ProcessID{}))
	parent := exec.Command("sh", "-c", "read x; sleep 60 & read x; kill $!; wait; read x")
	in, err := parent.StdinPipe()
	require.NoError(t, err)
	id, err := LookupProcess(shimtest.Child(t, parent).Process.Pid)
	require.NoError(t, err)
	require.False(t, has(id))
	_, err = in.Write([]byte("\n"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return has(id) }, time.Minute, 5*time.Millisecond)
	_, err = in.Write([]byte("\n"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !has(id) }, time.Minute, 5*time.Millisecond)
	require.NoError(t, in.Close())
	_ = parent.Wait()
	require.False(t, has(id), "it is gone")
}

// Only the names of sockets that are not there any more go.
func TestSweepLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := NewLauncher(LauncherConfig{GRPCAddress: "/run/c.sock", SocketDir: dir})
	there, gone := filepath.Join(dir, socketName("there")), filepath.Join(dir, socketName("gone"))
	listening(t, there)
	for id, path := range map[string]string{"a": gone, "b": gone, "c": there} {
		require.NoError(t, l.LinkSocket("ns", id, "unix://"+path))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for name, target := range map[string]string{
		"a-link": socketName("gone"), socketName("other"): "no-socket",
		socketName("far"): filepath.Join(dir, socketName("gone")),
	} {
		require.NoError(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	l.SweepLinks()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.ElementsMatch(t, []string{
		filepath.Base(there), socketName("/run/c.sock/ns/c"), "file", "a-link", socketName("other"), socketName("far"),
	}, names)
}
