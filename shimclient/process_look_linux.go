// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// lookTime is how long one look at a process may take. Nearly all are over in
// microseconds; one at a process that is stuck in the kernel, or at a file of a
// server that does not answer, may never be.
const lookTime = time.Second

// readEnviron is a variable for the tests of what does not return.
var readEnviron = func(pid int) ([]byte, error) { return os.ReadFile(procPath(pid, "environ")) }

// environ is the environment with which a process was executed; empty for one that
// is in an exec or an exit. Reading it takes the lock of the process's memory.
func environ(ctx context.Context, id ProcessID) ([]byte, error) {
	read := readEnviron
	return beside(ctx, id, func() ([]byte, error) { return read(id.Pid) })
}

// stuck are the processes at which a look has not returned in time and still has
// not: each holds a thread, so that there is one for a process and not one for
// each scan.
var stuck struct {
	mu sync.Mutex
	at map[ProcessID]int // looks that have not returned in time
}

// beside looks at a process on a goroutine of its own and gives up when ctx ends or
// after lookTime. Errors: those of the look; Unavailable when it was given up, or
// when an earlier one still has not returned. That a caller went away before the
// time was over says nothing of the process, so others may look at it.
func beside[T any](ctx context.Context, id ProcessID, look func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if isStuck(id) {
		return none, errors.Wrapf(errdefs.ErrUnavailable, "a look at process %d does not return", id.Pid)
	}
	over := make(chan struct{})
	late := time.AfterFunc(lookTime, func() { setStuck(id, 1); close(over) })
	done := make(chan result, 1)
	go func() {
		v, err := look()
		if !late.Stop() {
			setStuck(id, -1)
		}
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-over:
	case <-ctx.Done():
	}
	return none, errors.Wrapf(errdefs.ErrUnavailable, "a look at process %d does not return", id.Pid)
}

func isStuck(id ProcessID) bool {
	stuck.mu.Lock()
	defer stuck.mu.Unlock()
	return stuck.at[id] > 0
}

func setStuck(id ProcessID, by int) {
	stuck.mu.Lock()
	defer stuck.mu.Unlock()
	if stuck.at == nil {
		stuck.at = make(map[ProcessID]int)
	}
	if stuck.at[id] += by; stuck.at[id] == 0 {
		delete(stuck.at, id)
	}
}

// couldBeOurs reports whether a process that may not be looked at could have been
// started by us: it runs as our user, and with no capability that we cannot give.
// /proc tells that of any process.
func couldBeOurs(pid int) bool {
	uid, permitted, _, err := privileges(strconv.Itoa(pid))
	_, _, bounding, serr := privileges("self")
	return err != nil || serr != nil || uid == os.Geteuid() && permitted&^bounding == 0
}

// privileges are the effective user id, and the permitted and the bounding set of
// capabilities.
func privileges(pid string) (uid int, permitted, bounding uint64, err error) {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, 0, 0, errors.Wrapf(err, "cannot look at process %s", pid)
	}
	read := 0
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "Uid:":
			if len(fields) > 2 {
				uid, err = strconv.Atoi(fields[2])
			}
		case "CapPrm:":
			permitted, err = strconv.ParseUint(fields[1], 16, 64)
		case "CapBnd:":
			bounding, err = strconv.ParseUint(fields[1], 16, 64)
		default:
			continue
		}
		if err != nil {
			break
		}
		read++
	}
	if err != nil || read != 3 {
		return 0, 0, 0, errors.Errorf("cannot tell with what privileges process %s runs", pid)
	}
	return uid, permitted, bounding, nil
}
