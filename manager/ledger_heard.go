// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/shimyard/shimyard/bundle"
)

// hearExitLocked takes an exit that the shim told: an event with another pid than ours belongs to an earlier instance
// of the id, one that comes before the pid is known for good is kept until it is. True when the exit is the
// instance's and is recorded.
func (l *ledger) hearExitLocked(st state, execID string, e bundle.Exit) (ours bool) {
	e.Told = true
	x := l.rec.Execs[execID]
	pid := l.taskPidLocked()
	switch {
	case st == launching, execID != "" && x != nil && x.Pid == 0:
		l.keepLocked(execID, e)
	case execID != "":
		if ours = x != nil && x.Pid == e.Pid; ours {
			l.execExitLocked(execID, x, e)
		}
	case e.Pid == 0 || e.Pid == pid:
		l.exitLocked(e)
		ours = true
	case l.pidOpenLocked(st):
		l.keepLocked("", e)
	case pid == 0: // this shim does not answer with pids
		l.exitLocked(e)
		ours = true
	}
	return ours
}

// pidOpenLocked tells whether the shim may still answer with another pid of init than the one on record: Start may
// name another one than Create did, and its event may be faster than its answer.
func (l *ledger) pidOpenLocked(st state) bool {
	if st == restoring || l.status.underway > 0 || l.rec.Task == nil {
		return true
	}
	status := tasktypes.Status(tasktypes.Status_value[l.rec.Task.Status])
	return status == tasktypes.Status_CREATED || status == tasktypes.Status_UNKNOWN
}

func (l *ledger) keepLocked(execID string, e bundle.Exit) {
	if l.hearing.exits == nil {
		l.hearing.exits = make(map[process]bundle.Exit)
	}
	l.hearing.exits[process{execID, e.Pid}] = e
}

// heardLocked is what was heard of init's exit e before it was known: by its pid or, where the shim does not answer
// with one, by its words.
func (l *ledger) heardLocked(e bundle.Exit) (bundle.Exit, bool) {
	if e.Pid != 0 {
		h, ok := l.hearing.exits[process{"", e.Pid}]
		return h, ok
	}
	for p, h := range l.hearing.exits {
		if p.exec == "" && h.Status == e.Status && h.At.Equal(e.At) {
			return h, true
		}
	}
	return bundle.Exit{}, false
}

// hearDeleteLocked takes the deletion that the shim told. True when it is the instance's and is recorded.
func (l *ledger) hearDeleteLocked(st state, pid uint32) (ours bool) {
	own := l.taskPidLocked()
	_, heard := l.hearing.exits[process{"", pid}]
	ours = st != launching && (own == 0 || pid == 0 || own == pid || heard && l.pidOpenLocked(st))
	if ours {
		l.hearing.deleted = true
		if l.rec.Task != nil && l.rec.Task.Exit != nil {
			l.rec.Task.Exit.DeleteTold = true
			// Asked for by any caller, perhaps of the last daemon while the shim stalled: from here on State is
			// answered from the record, and the next Delete gets the exit.
			l.rec.Deleted = true
		}
	}
	return ours
}

// hearOOMLocked takes an OOM kill in the task that the shim told. True when that is to be recorded. An event that was
// sent before the create began is about an earlier task of the id.
func (l *ledger) hearOOMLocked(at time.Time) (news bool) {
	t := l.rec.Task
	if !l.tells || t == nil || l.rec.Deleted || at.Before(l.rec.Begun) {
		return false
	}
	news = !t.OOM
	t.OOM = true
	if (t.Exit == nil || !t.Exit.Told) && l.telling.oomDue.IsZero() {
		l.repeatOOMLocked()
	}
	return news
}

func (l *ledger) taskPidLocked() uint32 {
	if l.rec.Task == nil {
		return 0
	}
	return l.rec.Task.Pid
}

// execPid is the pid of an exec; 0 means not known.
func (l *ledger) execPid(id string) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.rec.Execs[id]; x != nil {
		return x.Pid
	}
	return 0
}

// toldPids are the pids of the container's processes that the shim has told, with Create, Start or an event; 0 among
// them is none.
func (l *ledger) toldPids() (pids []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec.Task != nil {
		pids = append(pids, l.rec.Task.Pid)
	}
	for _, x := range l.rec.Execs {
		pids = append(pids, x.Pid)
	}
	for p := range l.hearing.exits {
		pids = append(pids, p.pid)
	}
	return pids
}
