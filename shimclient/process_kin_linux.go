// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth bounds the way up to an ancestor.
	maxDepth = 64
	// ticksPerSecond is the unit of start times, USER_HZ: 100 on all of Linux.
	ticksPerSecond = 100
	// startSlack is for the difference between the clock of files and that of
	// processes.
	startSlack = 2 * time.Second
)

// DescendsFrom reports whether ancestor is the process's parent, or its
// parent's, and so on. Both must be alive; where that is not certain, false.
func (p ProcessID) DescendsFrom(ancestor ProcessID) bool {
	pid := p.Pid
	for range maxDepth {
		st, err := readStat(pid)
		if err != nil || st.parent <= 1 || pid == p.Pid && (st.start != p.StartTime || st.dead()) {
			return false
		}
		if st.parent == ancestor.Pid {
			// One that is alive now was so when the parent was read, and nothing else had its pid. Of the process itself
			// what was read tells, unless there was more to read since.
			return ancestor.Alive() && (pid == p.Pid || p.Alive())
		}
		pid = st.parent
	}
	return false
}

// StartedBefore reports whether the process began before t, by the wall clock:
// what a file of that time says of a pid can be about it. Where that cannot be
// told, false.
func (p ProcessID) StartedBefore(t time.Time) bool {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return false
	}
	age := time.Duration(up.Nano()) - time.Duration(p.StartTime)*(time.Second/ticksPerSecond)
	return p.StartTime != 0 && time.Now().Add(-age).Before(t.Add(startSlack))
}

// LeadsSession reports whether the process was detached from the one that ran it,
// as a daemon is. False where that is not certain.
func (p ProcessID) LeadsSession() bool {
	st, err := readStat(p.Pid)
	return err == nil && st.start == p.StartTime && st.session == p.Pid
}

// HasChildren reports whether the process has children that run. A process that is
// gone has none. An error means that it could not be told.
func (p ProcessID) HasChildren(ctx context.Context) (bool, error) {
	if !p.Alive() {
		return false, nil
	}
	s, err := scanProcesses(ctx, p.StartTime, func(_ ProcessID, st procStat) sight {
		return seenIf(st.parent == p.Pid)
	})
	return len(s.found) > 0 && p.Alive(), err
}
