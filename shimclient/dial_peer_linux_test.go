// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// listenAs listens as another user.
func listenAs(t *testing.T, uid uintptr, path string) net.Listener {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		// The thread keeps the other uid and ends with the goroutine.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
			done <- result{err: errno}
			return
		}
		l, err := net.Listen("unix", path)
		done <- result{l, err}
	}()
	r := <-done
	require.NoError(t, r.err)
	t.Cleanup(func() { _ = r.l.Close() })
	return r.l
}

// TestCVE202015257: an abstract name, and a path in a directory that others can write to, may be taken by anybody while
// the shim is gone. (https://github.com/containerd/containerd/security/advisories/GHSA-36xw-fx78-c5r4)
func TestCVE202015257(t *testing.T) {
	noLeaks(t)
	dir := socketDir(t)
	require.NoError(t, os.Chmod(dir, 0o777))
	for listen, address := range map[string]string{
		filepath.Join(dir, "s"):          "unix://" + filepath.Join(dir, "s"),
		"\x00" + filepath.Join(dir, "a"): filepath.Join(dir, "a"),
		"\x00" + filepath.Join(dir, "b"): "unix://@" + filepath.Join(dir, "b"),
	} {
		listenAs(t, 65534, listen)
		for _, protocol := range []string{protocolTTRPC, protocolGRPC} {
			if protocol == protocolGRPC && filepath.IsAbs(address) {
				continue // a bare path is a file there
			}
			e := Endpoint{Protocol: protocol, Address: address, Version: 3}
			require.Equal(t, Refused, e.Probe(testContext(t)), "%q", e)
			_, err := Dial(testContext(t), e, nil)
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			require.ErrorIs(t, err, errForeignPeer)
			require.ErrorContains(t, err, "uid 65534")
		}
	}
}

// TestDialHybridVsockOfAnotherUser: the monitor of a VM runs as a user of its own.
func TestDialHybridVsockOfAnotherUser(t *testing.T) {
	noLeaks(t)
	dir := socketDir(t)
	require.NoError(t, os.Chmod(dir, 0o777))
	l := listenAs(t, 65534, filepath.Join(dir, "vm"))
	asked := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		asked <- readLine(c)
		_, _ = c.Write([]byte("OK 1\n"))
	}()
	e := Endpoint{Protocol: protocolTTRPC, Address: "hvsock://" + filepath.Join(dir, "vm") + ":1024", Version: 3}
	require.Equal(t, Reachable, e.Probe(testContext(t)))
	require.Equal(t, "CONNECT 1024", <-asked)
}

// A shim that tells the bare path of its socket file: with the file gone, whoever listens at the abstract name is
// another.
func TestVanishedSocketFileIsNoAbstractName(t *testing.T) {
	noLeaks(t)
	l, path := listenUnix(t)
	reply := &bootapi.BootstrapResult{Version: 2, Protocol: protocolTTRPC, Address: path}
	told, err := EndpointOf(reply)
	require.NoError(t, err)
	kept := told.Followed()
	pinAddress(reply)
	require.Equal(t, "unix://"+path, reply.Address)
	require.Equal(t, reply.Address, kept.Address)
	require.Equal(t, Reachable, kept.Probe(testContext(t)))

	require.NoError(t, l.Close())
	stranger, err := net.Listen("unix", "\x00"+path)
	require.NoError(t, err)
	defer stranger.Close()
	require.Equal(t, Refused, kept.Probe(testContext(t)))

	// A name that never was a file's stays what it is.
	reply.Address = path
	pinAddress(reply)
	require.Equal(t, path, reply.Address)
	require.Equal(t, Reachable, told.Followed().Probe(testContext(t)))
}

func TestStartPinsTheAddress(t *testing.T) {
	_, path := listenUnix(t)
	lt := newLaunchTest(t, shimtest.Scenario{})
	lt.req.Binary.Path = writeBinary(t, "containerd-shim-bare-v1", "#!/bin/sh\necho "+path+"\n")
	res, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	require.Equal(t, "unix://"+path, res.Address)
}
