// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

const (
	// rescanPause is between two scans.
	rescanPause = 10 * time.Millisecond
	// cleanScans is how many scans in a row must find nothing: a process may
	// fork into a pid that one scan has passed, and exit before it is reached.
	cleanScans = 2
	// unclearScans is for how many scans a process counts as possibly one of the
	// launch, because its environment cannot be read: an exec and an exit are
	// short, unless the kernel is stuck, which has then nothing to do with us.
	unclearScans = 100
	// endTime bounds EndLaunch where its caller does not.
	endTime = 10 * time.Second
)

// VerifyShim checks that the process pid, which a shim named as its own, is a
// shim of that binary: its executable is that file, or one of the same name (the
// file may have been replaced since), or it carries the token of the launch
// (scripts run as their interpreter). It is never the daemon itself. Errors:
// NotFound when there is no such process, FailedPrecondition when it is another.
func VerifyShim(pid int, b Binary, token string) (ProcessID, error) {
	id, err := LookupProcess(pid)
	if err != nil {
		return ProcessID{}, err
	}
	matches := pid != os.Getpid() && (runsBinary(pid, b) || (checkToken(token) == nil && hasToken(pid, token)))
	// What was read is this process's only if it is still there.
	if !id.Alive() {
		return ProcessID{}, id.gone()
	}
	if !matches {
		return ProcessID{}, errors.Wrapf(errdefs.ErrFailedPrecondition,
			"process %d is not a shim of %s, nor of its launch", pid, b.Path)
	}
	return id, nil
}

func runsBinary(pid int, b Binary) bool {
	link := procPath(pid, "exe")
	if exe, err := IdentifyFile(link); err == nil {
		if now, err := IdentifyFile(b.Path); err == nil && exe.dev == now.dev && exe.inode == now.inode {
			return true
		}
		if b.File != (FileID{}) && exe == b.File {
			return true
		}
	}
	target, err := os.Readlink(link)
	if err != nil || b.Path == "" {
		return false
	}
	name := filepath.Base(strings.TrimSuffix(target, deletedMark))
	if name == filepath.Base(b.Path) {
		return true
	}
	resolved, err := filepath.EvalSymlinks(b.Path)
	return err == nil && name == filepath.Base(resolved)
}

// deletedMark is what the kernel appends to a link in /proc whose target is no
// longer there.
const deletedMark = " (deleted)"

// hasToken reports whether a process was executed with the token in its
// environment.
func hasToken(pid int, token string) bool {
	has, _ := readToken(pid, token)
	return has
}

// readToken is hasToken, and tells whether there was an environment to read.
func readToken(pid int, token string) (has, readable bool) {
	env, err := os.ReadFile(procPath(pid, "environ"))
	if err != nil {
		return false, false
	}
	want := []byte(TokenEnv + "=" + token)
	for entry := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(entry, want) {
			return true, true
		}
	}
	return false, len(env) > 0
}

// FindByToken returns the processes that carry the token of a launch, without
// the caller's own.
func FindByToken(token string) []ProcessID {
	found, _ := scanToken(token)
	return found
}

// scanToken is FindByToken, and tells of which processes it could not be told.
func scanToken(token string) (found, unclear []ProcessID) {
	if checkToken(token) != nil {
		return nil, nil
	}
	found = scanProcesses(func(pid int) bool {
		has, readable := readToken(pid, token)
		if !readable {
			if st, err := readStat(pid); err == nil && st.unclear {
				unclear = append(unclear, ProcessID{Pid: pid, StartTime: st.start})
			}
		}
		return has
	})
	return found, unclear
}

// FindByDir returns the processes whose working directory is dir, without the
// caller's own. A directory that is gone is known by its old path.
func FindByDir(dir string) []ProcessID {
	var want unix.Stat_t
	exists := unix.Stat(dir, &want) == nil
	clean := filepath.Clean(dir)
	return scanProcesses(func(pid int) bool {
		link := procPath(pid, "cwd")
		if !exists {
			target, err := os.Readlink(link)
			return err == nil && target == clean+deletedMark
		}
		var st unix.Stat_t
		return unix.Stat(link, &st) == nil && st.Dev == want.Dev && st.Ino == want.Ino
	})
}

// scanProcesses returns the running processes for which match holds.
func scanProcesses(match func(pid int) bool) []ProcessID {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	var found []ProcessID
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() || !match(pid) {
			continue
		}
		if id, err := LookupProcess(pid); err == nil {
			found = append(found, id)
		}
	}
	return found
}

// EndLaunch kills every process that carries the token of a launch, until none
// is left. Only for a launch that never got a task: what a shim started for a
// task would go with it. It returns an error that names what is left when ctx
// ends, or after 10 s.
func EndLaunch(ctx context.Context, token string) error {
	if err := checkToken(token); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	clean, seen := 0, make(map[ProcessID]int)
	for {
		left, unclear := scanToken(token)
		clean++
		for _, p := range unclear {
			if seen[p]++; seen[p] <= unclearScans {
				clean = 0
			}
		}
		if len(left) > 0 {
			clean = 0
		}
		if clean == cleanScans {
			return nil
		}
		killAll(ctx, left, token)
		if !sleep(ctx, rescanPause) {
			return leftError(ctx, token)
		}
	}
}

// killAll kills the processes, each only if it is still the one found, and waits
// for those as long as ctx allows.
func killAll(ctx context.Context, processes []ProcessID, token string) {
	var killed []ProcessID
	for _, p := range processes {
		if p.signalIf(syscall.SIGKILL, func() bool { return hasToken(p.Pid, token) }) == nil {
			killed = append(killed, p)
		}
	}
	for _, p := range killed {
		_ = p.Wait(ctx)
	}
}

func leftError(ctx context.Context, token string) error {
	left := FindByToken(token)
	if len(left) == 0 {
		return nil
	}
	pids := make([]string, len(left))
	for i, p := range left {
		pids[i] = fmt.Sprint(p.Pid)
	}
	return errors.Wrapf(endOf(ctx), "cannot end all processes of the launch, left: %s", strings.Join(pids, ", "))
}
