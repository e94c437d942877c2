// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// borrowListener is the socket that a process listens on, as one has it that the process has just forked.
func borrowListener(t *testing.T, pid int) net.Listener {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	require.NoError(t, err)
	defer unix.Close(pidfd)
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(t, err)
	for _, path := range fds {
		number, err := strconv.Atoi(filepath.Base(path))
		require.NoError(t, err)
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			continue
		}
		if is, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || is == 0 {
			unix.Close(fd)
			continue
		}
		f := os.NewFile(uintptr(fd), "listener")
		defer f.Close()
		l, err := net.FileListener(f)
		require.NoError(t, err)
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		return l
	}
	require.Fail(t, "it listens at no socket")
	return nil
}

// TestSocketOfAShimThatHasJustForked: a warm shim dies when it has just forked the OCI runtime, which has the shim's
// socket open until it is executed. Nobody is there for the name, which goes all the same.
func TestSocketOfAShimThatHasJustForked(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 10})
	y.pooled("c1")
	w := y.warm("c1")
	l := borrowListener(t, w.p.Verified().Pid)
	y.killShim(w.dir.ID)
	require.NoError(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(20*time.Second)))
	const looks = 4 // more than come from whoever looks once whether it answers, and dials once more
	for range looks {
		c, err := l.Accept()
		require.NoError(t, err)
		c.Close()
	}
	require.NoError(t, l.Close())
	y.removed("c1")
	y.gone(w.dir.ID)
	y.until("the socket is gone", func() bool {
		for _, s := range y.shim.Sockets() {
			if "unix://"+s == w.reply.Address {
				return false
			}
		}
		return true
	})
}
