// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cut cuts the connections between the daemon and the shims of a container, in the way that f says. The sockets are
// those of the shim, borrowed from it: what is done to one end of a unix socket is felt at the other.
func (c *chaos) cut(s *slot, f step) {
	for _, pid := range c.shims(s) {
		c.strike("cut", pid, func() {
			if n := c.cutOne(pid, f); n > 0 {
				c.note(s, "%s %d: %d connections of shim %d", f.op, f.arg%4, n, pid)
			}
		})
	}
}

// cutOne does it to one shim, and counts the connections.
func (c *chaos) cutOne(pid int, f step) int {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(pidfd)
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	count := 0
	for _, path := range fds {
		if target, err := os.Readlink(path); err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		number, _ := strconv.Atoi(filepath.Base(path))
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			continue // closed meanwhile
		}
		if c.isConnection(fd, f.op == "cut-events") {
			harmSocket(fd, f)
			count++
		}
		unix.Close(fd)
	}
	return count
}

// isConnection tells whether a socket is a connection to the daemon: one that the daemon made to the shim, or the one
// that the shim made for its events.
func (c *chaos) isConnection(fd int, events bool) bool {
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return false // it listens
	}
	if events {
		addr, ok := peer.(*unix.SockaddrUnix)
		return ok && addr.Name == filepath.Join(c.Dir, "c.ttrpc")
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	addr, ok := own.(*unix.SockaddrUnix)
	return ok && len(addr.Name) > 1 // what was accepted has the listener's, what was dialled has none, which reads "@"
}

func harmSocket(fd int, f step) {
	switch f.op {
	case "half-cut":
		how := unix.SHUT_RD
		if f.arg%2 == 0 {
			how = unix.SHUT_WR
		}
		_ = unix.Shutdown(fd, how) // it may be closed
	case "garbage":
		junk := make([]byte, 1+f.arg%64)
		for i := range junk {
			junk[i] = byte(f.arg >> (i % 16))
		}
		_ = unix.Send(fd, junk, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) // it may be closed
	default:
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // it may be closed
	}
}
