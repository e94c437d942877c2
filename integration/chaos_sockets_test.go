// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// awaySocket is a shim's socket that was moved away, as a tmp cleaner removes it. The shim listens on it all the same.
type awaySocket struct {
	pid        int
	path, away string
}

// hideSockets takes the shims of a container their sockets, and the connections that were made before, so that they
// live and cannot be reached.
func (c *chaos) hideSockets(s *slot) {
	for _, pid := range c.shims(s) {
		c.strike("cut", pid, func() {
			for _, path := range socketsOf(pid) {
				c.hide(s, pid, path)
			}
			c.cutOne(pid, step{op: "cut"})
		})
	}
}

func (c *chaos) hide(s *slot, pid int, path string) {
	dir := filepath.Join(c.Dir, "away")
	_ = os.MkdirAll(dir, 0o700)
	a := awaySocket{pid: pid, path: path, away: filepath.Join(dir, fmt.Sprintf("%d-%s", pid, filepath.Base(path)))}
	if err := os.Rename(path, a.away); err != nil {
		return // it is away already, or its shim has ended
	}
	c.away = append(c.away, a)
	c.note(s, "socket %s of shim %d is away", path, pid)
}

// returnSockets puts them back where their shims still live. A shim whose name the group's next one has taken meanwhile
// can never be reached again, so it is ended: a round ends with all in order.
func (c *chaos) returnSockets() {
	for _, a := range c.away {
		err := os.Link(a.away, a.path)
		switch {
		case !runs(uint32(a.pid)):
			c.note(nil, "socket %s does not come back, its shim %d has ended", a.path, a.pid)
			if err == nil {
				_ = os.Remove(a.path) // the daemon has removed it before, or finds nothing left to remove
			}
		case errors.Is(err, fs.ErrExist):
			c.note(nil, "socket %s does not come back, another shim than %d has the name", a.path, a.pid)
			c.strike("shim-kill", a.pid, func() { _ = unix.Kill(a.pid, unix.SIGKILL) })
		case err != nil:
			c.note(nil, "socket %s of shim %d does not come back: %v", a.path, a.pid, err)
		}
		_ = os.Remove(a.away)
	}
	c.away = nil
}

// socketsOf are the files that a process listens on.
func socketsOf(pid int) []string {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(pidfd)
	var paths []string
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // well-formed
	for _, path := range fds {
		number, _ := strconv.Atoi(filepath.Base(path))
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			continue // closed meanwhile
		}
		if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listens == 1 {
			if own, err := unix.Getsockname(fd); err == nil {
				if addr, ok := own.(*unix.SockaddrUnix); ok && filepath.IsAbs(addr.Name) {
					paths = append(paths, addr.Name)
				}
			}
		}
		unix.Close(fd)
	}
	return paths
}
