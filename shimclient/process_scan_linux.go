// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// unclearScans is for how many scans a process counts as possibly one of the
// launch, because its environment cannot be read: an exec and an exit are
// short, unless the kernel is stuck, which has then nothing to do with us.
const unclearScans = 100

// sight is what a look at one process brought.
type sight int

const (
	unseen  sight = iota // it is not what is looked for
	seen                 // it is
	passing              // it cannot be told while the process is in an exec or an exit
	blocked              // it cannot be told: the look does not return, or is not allowed
	failed               // nothing can be looked at now: the daemon is out of descriptors or memory
)

func seenIf(is bool) sight {
	if is {
		return seen
	}
	return unseen
}

// sightings are what a scan of all processes brought.
type sightings struct{ found, passing []ProcessID }

// FindByToken returns the processes that carry the token of a launch, without the
// caller's own. An error means that there may be others: /proc or a process could
// not be looked at, or ctx has ended. What was found is returned with it.
func FindByToken(ctx context.Context, token string) ([]ProcessID, error) {
	if checkToken(token) != nil {
		return nil, nil
	}
	for scans := 1; ; scans++ {
		s, err := scanToken(ctx, token)
		if err != nil || len(s.found) > 0 || len(s.passing) == 0 || scans == unclearScans {
			return s.found, err
		}
		if !sleep(ctx, rescanPause) {
			return nil, errors.Wrap(endOf(ctx), "looking for the processes of a launch")
		}
	}
}

func scanToken(ctx context.Context, token string) (sightings, error) {
	return scanProcesses(ctx, madeAt(token), func(id ProcessID, st procStat) sight {
		has, empty, err := carries(ctx, id, token)
		if err != nil {
			return sightOf(id, err)
		}
		if empty && st.unclear {
			return passing
		}
		return seenIf(has)
	})
}

// FindByDir returns the processes whose working directory is dir, without the
// caller's own. A directory that is gone is known by its old path. The error is
// as that of FindByToken.
//
// The text of the link tells, and no file behind it is touched: a working directory
// may be on a file system that does not answer. Only where the text is the
// directory's is it asked for whether it really is: another mount namespace may
// have the same path.
func FindByDir(ctx context.Context, dir string) ([]ProcessID, error) {
	dir = filepath.Clean(dir)
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	var want unix.Stat_t
	text := dir
	if unix.Stat(dir, &want) != nil {
		text = dir + deletedMark
	}
	s, err := scanProcesses(ctx, 0, func(id ProcessID, _ procStat) sight {
		link := procPath(id.Pid, "cwd")
		target, err := os.Readlink(link)
		if err != nil {
			return sightOf(id, err)
		}
		if target != text || text != dir {
			return seenIf(target == text)
		}
		st, err := beside(ctx, id, func() (st unix.Stat_t, err error) { return st, unix.Stat(link, &st) })
		if err != nil {
			return sightOf(id, err)
		}
		return seenIf(st.Dev == want.Dev && st.Ino == want.Ino)
	})
	return s.found, err
}

// sightOf is what a failed look at a process means.
func sightOf(id ProcessID, err error) sight {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
		return unseen
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return failed
	case errors.Is(err, os.ErrPermission):
		if !couldBeOurs(id.Pid) {
			return unseen
		}
	}
	return blocked
}

// scanProcesses looks at all running processes that began at since or later, but
// not at the caller's own. It fails where one of them could not be looked at, or
// all could not; what was seen is returned with the error.
func scanProcesses(ctx context.Context, since uint64, look func(ProcessID, procStat) sight) (s sightings, err error) {
	pids, err := allPids()
	if err != nil {
		return s, err
	}
	var unknown error
	for _, pid := range pids {
		st, err := readStat(pid)
		switch {
		case errdefs.IsNotFound(err):
			continue
		case err != nil:
			return s, unclear(pid, err)
		case st.dead() || st.start < since || pid == os.Getpid():
			continue
		}
		id := ProcessID{Pid: pid, StartTime: st.start}
		switch look(id, st) {
		case seen:
			if id.Alive() {
				s.found = append(s.found, id)
			}
		case passing:
			s.passing = append(s.passing, id)
		case blocked:
			unknown = unclear(pid, errors.New("it does not let itself be looked at"))
		case failed:
			return s, unclear(pid, errors.New("out of descriptors or memory"))
		case unseen:
		}
		if ctx.Err() != nil {
			return s, errors.Wrap(endOf(ctx), "looking at all processes")
		}
	}
	return s, unknown
}

func unclear(pid int, err error) error {
	return errors.Wrapf(errdefs.ErrUnavailable, "cannot tell whether process %d belongs to the shim: %v", pid, err)
}

// procDir is a variable for the tests of what is done without it.
var procDir = "/proc"

func allPids() ([]int, error) {
	proc, err := os.Open(procDir)
	if err != nil {
		return nil, errors.Wrapf(errdefs.ErrUnavailable, "cannot look at processes: %v", err)
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, errors.Wrapf(errdefs.ErrUnavailable, "cannot look at processes: %v", err)
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, errors.Wrapf(errdefs.ErrUnavailable, "cannot look at processes: %s has none", procDir)
	}
	return pids, nil
}
