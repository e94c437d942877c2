// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// awaitExit waits until a child has exited, and leaves it to be reaped: until
// then its pid, and the process group that it leads, stay its own. False
// means that it could not wait so.
func awaitExit(pid int) bool {
	fd, err := pidfdOpen(pid, 0)
	if err == nil && sleepUntilExit(context.Background(), fd) == nil {
		return true
	}
	return blockUntilExit(pid)
}

// sleepUntilExit waits until the process behind a pidfd, which it closes, has
// exited, or ctx ends. It waits in the runtime's poller. A thread that blocks in a
// call instead keeps its processor for 10 ms, for which the runtime's monitor wakes
// up every 20 us at first: a fifth of the daemon's CPU time for a launch.
func sleepUntilExit(ctx context.Context, fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(pidfdReadable)
}

// pidfdReadable reports whether the process behind a pidfd has exited.
func pidfdReadable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, _ := retried(func() (int, error) { return unix.Poll(fds, 0) })
	return n > 0
}

func blockUntilExit(pid int) bool {
	_, err := retried(func() (int, error) {
		return 0, unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	})
	return err == nil
}
