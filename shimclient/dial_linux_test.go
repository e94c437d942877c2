// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/mdlayher/vsock"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func abstractSockets() bool { return true }

// A shim that does not get round to accepting is not a dead one: Probe cannot
// tell, and Dial waits for room.
func TestDialFullBacklog(t *testing.T) {
	noLeaks(t)
	path := filepath.Join(socketDir(t), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	file := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { _ = file.Close() })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	require.NoError(t, unix.Listen(fd, 0))
	first, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = first.Close() })

	e := Endpoint{Protocol: protocolTTRPC, Address: "unix://" + path, Version: 3}
	require.Equal(t, Unknown, e.Probe(testContext(t)))
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	_, err = Dial(ctx, e, nil)
	require.Equal(t, context.DeadlineExceeded, errdefs.Resolve(err), "%v", err)

	go func() {
		time.Sleep(2 * dialRetry)
		if nfd, _, err := unix.Accept(fd); err == nil {
			_ = unix.Close(nfd)
		}
	}()
	conn, err := Dial(testContext(t), e, nil)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

func TestProbeNotPermitted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become nobody")
	}
	l, path := listenUnix(t)
	defer l.Close()
	require.NoError(t, os.Chmod(filepath.Dir(path), 0o755))
	require.NoError(t, os.Chmod(path, 0o600))
	e := Endpoint{Protocol: protocolTTRPC, Address: "unix://" + path, Version: 3}
	require.Equal(t, Reachable, e.Probe(testContext(t)))
	reach := make(chan Reach)
	go func() {
		// The thread keeps the other uid and ends with the goroutine.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETFSUID, 65534, 0, 0); errno != 0 {
			close(reach)
			return
		}
		reach <- e.Probe(context.Background())
	}()
	require.Equal(t, Unknown, <-reach)
}

func TestDialVsockLoopback(t *testing.T) {
	l, err := vsock.ListenContextID(vsock.Local, 0, nil)
	if err != nil {
		t.Skipf("no vsock loopback: %v", err)
	}
	probe, err := vsock.Dial(vsock.Local, l.Addr().(*vsock.Addr).Port, nil)
	if err != nil {
		_ = l.Close()
		t.Skipf("no vsock loopback: %v", err)
	}
	_ = probe.Close()
	_ = l.Close()
	for _, protocol := range []string{protocolTTRPC, protocolGRPC} {
		noLeaks(t)
		l, err := vsock.ListenContextID(vsock.Local, 0, nil)
		require.NoError(t, err)
		e := Endpoint{Protocol: protocol, Address: fmt.Sprintf("vsock://1:%d", l.Addr().(*vsock.Addr).Port), Version: 3}
		serveTask(t, l, e, answerPid)
		checkServes(t, e)
	}
}
