// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"maps"
	"time"

	"github.com/shimyard/shimyard/bundle"
)

// execOf is the exec that has the id now, nil when none is on record: what is asked of it is recorded for it, not for
// a successor.
func (l *ledger) execOf(id string) *bundle.ExecState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.Execs[id]
}

// execAdded, execStarted and execDeleted keep the list of execs, which a dead shim's exits are told from. The shim has
// added the exec: an earlier one under the id, which it has deleted for a caller that never came back for the exit, is
// over.
func (l *ledger) execAdded(id string) {
	l.mu.Lock()
	maps.DeleteFunc(l.hearing.exits, func(p process, _ bundle.Exit) bool { return p.exec == id })
	if l.rec.Execs == nil {
		l.rec.Execs = make(map[string]*bundle.ExecState)
	}
	l.rec.Execs[id] = &bundle.ExecState{}
	l.mu.Unlock()
}

func (l *ledger) execStarted(id string, pid uint32) {
	l.mu.Lock()
	if x := l.rec.Execs[id]; x != nil {
		x.Pid = pid
		if x.Exit != nil && x.Exit.Pid == 0 {
			x.Exit.Pid = pid // a Wait was answered before
		}
		if e, ok := l.hearing.exits[process{id, pid}]; ok {
			l.execExitLocked(id, x, e)
		}
		l.replayLaterLocked()
	}
	l.mu.Unlock()
	l.save()
}

// learnExecExit records the exit of an exec that was on record when it was asked for, as an answer told it. Its pid
// is that on record: 0 while Start is not answered. It returns the exit that was learnt first.
func (l *ledger) learnExecExit(id string, x *bundle.ExecState, e bundle.Exit) (first *bundle.Exit) {
	l.mu.Lock()
	if x == nil || x != l.rec.Execs[id] {
		l.mu.Unlock()
		e.At = orFirst(e.At, time.Time{})
		return &e
	}
	news := x.Exit == nil
	if news {
		e.Pid = x.Pid
		l.setExecExitLocked(id, x, e)
		l.replayLaterLocked()
	}
	e = *x.Exit
	l.mu.Unlock()
	if news {
		l.save()
	}
	return &e
}

// onExecDeleted records that the shim has deleted an exec, and its exit where that is not known yet. It returns the
// exit that was learnt first.
func (l *ledger) onExecDeleted(id string, x *bundle.ExecState, e *bundle.Exit) *bundle.Exit {
	l.mu.Lock()
	if x == nil || l.rec.Execs[id] != x {
		l.mu.Unlock()
		e.At = orFirst(e.At, time.Time{})
		return e
	}
	x.Deleted = true
	if x.Exit == nil {
		l.setExecExitLocked(id, x, *e)
	}
	first := *x.Exit
	l.mu.Unlock()
	l.save()
	return &first
}

// execDeleted takes an exec off the record, unless the id is another's by now.
func (l *ledger) execDeleted(id string, x *bundle.ExecState) {
	l.mu.Lock()
	ours := x != nil && l.rec.Execs[id] == x
	if ours {
		delete(l.rec.Execs, id)
		maps.DeleteFunc(l.hearing.exits, func(p process, _ bundle.Exit) bool { return p.exec == id })
	}
	l.mu.Unlock()
	if ours {
		l.save()
	}
}

// setExecExitLocked records the exit of an exec.
func (l *ledger) setExecExitLocked(id string, x *bundle.ExecState, e bundle.Exit) {
	if e.Pid == 0 {
		e.Pid = x.Pid
	}
	e.At = orFirst(e.At, x.Stopped)
	x.Exit = &e
	l.wakeLocked(id)
}

// execExitLocked records the exit of an exec as it was told; one that an answer told before stays, and was told now.
func (l *ledger) execExitLocked(id string, x *bundle.ExecState, e bundle.Exit) {
	if x.Exit == nil {
		e.Told = false
		l.setExecExitLocked(id, x, e)
	}
	l.toldLocked(x.Exit)
	l.keeper.announceLocked()
}

// execLocked is the exec that has the id now; nil when none is on record.
func (l *ledger) execLocked(id string) *bundle.ExecState { return l.rec.Execs[id] }

// execsLocked are copies of the execs on record, by their ids.
func (l *ledger) execsLocked() map[string]bundle.ExecState {
	execs := make(map[string]bundle.ExecState, len(l.rec.Execs))
	for id, x := range l.rec.Execs {
		execs[id] = *x
	}
	return execs
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
