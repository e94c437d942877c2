// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import "golang.org/x/sys/unix"

// awaitExit waits until a child has exited, and leaves it to be reaped: until
// then its pid, and the process group that it leads, stay its own. False
// means that it could not wait so.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}
