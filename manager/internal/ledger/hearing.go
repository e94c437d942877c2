// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
)

// HearExit takes an exit that the shim told: an event with another pid than ours belongs to an earlier instance
// of the id, one that comes before the pid is known for good is kept until it is. True when the exit is the
// instance's and is recorded, which is saved soon. The state and that are one step, see the package's doc.
func (l *Ledger) HearExit(s life.State, execID string, e bundle.Exit) (ours bool) {
	defer l.saveSoonIf(&ours)
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Told = true
	x := l.rec.Execs[execID]
	pid := l.taskPidLocked()
	switch {
	case s == life.Launching, execID != "" && x != nil && x.Pid == 0:
		l.keepLocked(execID, e)
	case execID != "":
		if ours = x != nil && x.Pid == e.Pid; ours {
			l.execExitLocked(execID, x, e)
		}
	case e.Pid == 0 || e.Pid == pid:
		l.exitLocked(e)
		ours = true
	case l.pidOpenLocked(s):
		l.keepLocked("", e)
	case pid == 0: // this shim does not answer with pids
		l.exitLocked(e)
		ours = true
	}
	return ours
}

// pidOpenLocked tells whether the shim may still answer with another pid of init than the one on record: Start may
// name another one than Create did, and its event may be faster than its answer.
//
// +checklocks:l.mu
func (l *Ledger) pidOpenLocked(s life.State) bool {
	if s == life.Restoring || l.status.underway > 0 || l.rec.Task == nil {
		return true
	}
	status := tasktypes.Status(tasktypes.Status_value[l.rec.Task.Status])
	return status == tasktypes.Status_CREATED || status == tasktypes.Status_UNKNOWN
}

// HearDelete takes the deletion that the shim told. True when it is the instance's and is recorded, which is saved
// soon. The state and that are one step, see the package's doc.
func (l *Ledger) HearDelete(s life.State, pid uint32) (ours bool) {
	defer l.saveSoonIf(&ours)
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.taskPidLocked()
	_, heard := l.hearing.exits[process{"", pid}]
	ours = s != life.Launching && (own == 0 || pid == 0 || own == pid || heard && l.pidOpenLocked(s))
	if ours {
		l.hearing.deleted = true
		if e := l.exitOfLocked(""); e != nil {
			e.DeleteTold = true
			// Asked for by any caller, perhaps of the last daemon while the shim stalled: from here on State is
			// answered from the record, and the next Delete gets the exit.
			l.rec.Deleted = true
		}
	}
	return ours
}

// HearOOM takes an OOM kill in the task that the shim told. True when that is news, and recorded, which is saved soon. An
// event that was sent before the create began is about an earlier task of the id.
func (l *Ledger) HearOOM(at time.Time) (news bool) {
	defer l.saveSoonIf(&news)
	l.mu.Lock()
	defer l.mu.Unlock()
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
