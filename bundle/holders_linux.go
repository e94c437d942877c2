// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// holder is a process that uses a file system.
type holder struct {
	pid int
	// what is how: "cwd", "root", "exe" or "fd N"; path is where, as the process's mount namespace has it.
	what, path string
}

func (h *holder) String() string { return fmt.Sprintf("process %d (%s %s)", h.pid, h.what, h.path) }

// holderBelow returns a process that has something open at or below one of paths; nil when there is none. It reads the
// texts of links in /proc and never what is behind them, which may be on a file system that does not answer.
func holderBelow(paths ...string) (*holder, error) {
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if h, err := holding(pid, paths); h != nil || err != nil {
			return h, err
		}
	}
	return nil, nil
}

// foreignHolder returns a process of another mount namespace that has something open on one of the devices: there they
// can stay mounted, and be written to, after they were unmounted here. nil when there is none.
func foreignHolder(devices map[device]bool) (*holder, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	mounted := make(map[string][]string) // where the devices are mounted, by namespace
	for _, pid := range pids {
		ns, err := os.Readlink(procPath(pid, "ns/mnt"))
		if err := unlessHidden(err); err != nil {
			return nil, err
		}
		if err != nil || ns == own {
			continue
		}
		paths, known := mounted[ns]
		if !known {
			if paths, err = mountsOf(pid, devices); err != nil {
				return nil, err
			}
			mounted[ns] = paths
		}
		if h, err := holding(pid, paths); h != nil || err != nil {
			return h, err
		}
	}
	return nil, nil
}

// mountsOf lists where the devices are mounted in the mount namespace of a process.
func mountsOf(pid int, devices map[device]bool) ([]string, error) {
	f, err := os.Open(procPath(pid, "mountinfo"))
	if err != nil {
		return nil, unlessHidden(err)
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, unlessHidden(err)
	}
	var paths []string
	for _, m := range mounts {
		if devices[deviceOf(m)] {
			paths = append(paths, m.Mountpoint)
		}
	}
	return paths, nil
}

// holding returns what a process has open at or below one of paths; nil when that is nothing, or not ours to see.
func holding(pid int, paths []string) (*holder, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	links := []string{"cwd", "root", "exe"}
	fds, err := os.ReadDir(procPath(pid, "fd"))
	if err := unlessHidden(err); err != nil {
		return nil, err
	}
	for _, fd := range fds {
		links = append(links, "fd/"+fd.Name())
	}
	for _, link := range links {
		text, err := os.Readlink(procPath(pid, link))
		if err := unlessHidden(err); err != nil {
			return nil, err
		}
		text = strings.TrimSuffix(text, " (deleted)")
		for _, path := range paths {
			if err == nil && filepath.IsAbs(text) && isAtOrBelow(text, path) {
				return &holder{pid, strings.Replace(link, "/", " ", 1), text}, nil
			}
		}
	}
	return nil, nil
}

// processes lists all that are visible.
func processes() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func procPath(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// unlessHidden is nil for the errors that a process causes which has ended, or which is not ours to look into.
func unlessHidden(err error) error {
	for _, is := range []error{unix.ENOENT, unix.ESRCH, unix.EACCES, unix.EPERM, unix.EINVAL} {
		if errors.Is(err, is) {
			return nil
		}
	}
	return errors.WithStack(err)
}
