// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"

	"golang.org/x/sys/unix"
)

// awaitExit waits until a child has exited, and leaves it to be reaped: until
// then its pid, and the process group that it leads, stay its own. False
// means that it could not wait so.
func awaitExit(pid int) bool { return sleepUntilExit(pid) || blockUntilExit(pid) }

// sleepUntilExit waits in the runtime's poller. A thread that blocks in a call
// instead keeps its processor for 10 ms, for which the runtime's monitor wakes up
// every 20 us at first: a fifth of the daemon's CPU time for a launch.
func sleepUntilExit(pid int) bool {
	fd, err := pidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return false
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	conn, err := f.SyscallConn()
	return err == nil && conn.Read(pidfdReadable) == nil
}

func blockUntilExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}
