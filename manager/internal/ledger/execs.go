// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"maps"
	"time"

	"github.com/shimyard/shimyard/bundle"
)

// Exec is one exec, as opposed to a successor under its id: what is asked of it is recorded for it.
type Exec struct {
	id string
	x  *bundle.ExecState // its fields are the ledger's lock's
}

// IsKnown tells whether there was such an exec on record.
func (x Exec) IsKnown() bool { return x.x != nil }

// ExecOf is the exec that has the id now.
func (l *Ledger) ExecOf(id string) Exec {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Exec{id, l.rec.Execs[id]}
}

// isCurrentLocked tells whether an exec is on record still.
//
// +checklocks:l.mu
func (l *Ledger) isCurrentLocked(x Exec) bool { return x.x != nil && l.rec.Execs[x.id] == x.x }

// ExecAdded, ExecStarted and ExecDeleted keep the list of execs, which a dead shim's exits are told from. The shim has
// added the exec: an earlier one under the id, which it has deleted for a caller that never came back for the exit, is
// over.
func (l *Ledger) ExecAdded(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetHeardLocked(id)
	if l.rec.Execs == nil {
		l.rec.Execs = make(map[string]*bundle.ExecState)
	}
	l.rec.Execs[id] = &bundle.ExecState{}
}

// ExecStarted records the pid of an exec, and its exit if that was told before the pid was.
func (l *Ledger) ExecStarted(id string, pid uint32) {
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
	l.Save()
}

// LearnExecExit records the exit of an exec that was on record when it was asked for, as an answer told it. Its pid
// is that on record: 0 while Start is not answered. It returns the exit that was learnt first.
func (l *Ledger) LearnExecExit(x Exec, e bundle.Exit) (first *bundle.Exit) {
	l.mu.Lock()
	if !l.isCurrentLocked(x) {
		l.mu.Unlock()
		e.At = orFirst(e.At, time.Time{})
		return &e
	}
	news := x.x.Exit == nil
	if news {
		e.Pid = x.x.Pid
		l.setExecExitLocked(x.id, x.x, e)
		l.replayLaterLocked()
	}
	e = *x.x.Exit
	l.mu.Unlock()
	if news {
		l.Save()
	}
	return &e
}

// ExecDeleted records that the shim has deleted an exec, and its exit where that is not known yet. It returns the
// exit that was learnt first.
func (l *Ledger) ExecDeleted(x Exec, e bundle.Exit) *bundle.Exit {
	l.mu.Lock()
	if !l.isCurrentLocked(x) {
		l.mu.Unlock()
		e.At = orFirst(e.At, time.Time{})
		return &e
	}
	x.x.Deleted = true
	if x.x.Exit == nil {
		l.setExecExitLocked(x.id, x.x, e)
	}
	first := *x.x.Exit
	l.mu.Unlock()
	l.Save()
	return &first
}

// ForgetExec takes an exec off the record, unless the id is another's by now.
func (l *Ledger) ForgetExec(x Exec) {
	l.mu.Lock()
	ours := l.isCurrentLocked(x)
	if ours {
		delete(l.rec.Execs, x.id)
		l.forgetHeardLocked(x.id)
	}
	l.mu.Unlock()
	if ours {
		l.Save()
	}
}

// forgetHeardLocked forgets what was heard of an exec before it was known whose it is.
//
// +checklocks:l.mu
func (l *Ledger) forgetHeardLocked(id string) {
	maps.DeleteFunc(l.hearing.exits, func(p process, _ bundle.Exit) bool { return p.exec == id })
}

// setExecExitLocked records the exit of an exec.
//
// +checklocks:l.mu
func (l *Ledger) setExecExitLocked(id string, x *bundle.ExecState, e bundle.Exit) {
	if e.Pid == 0 {
		e.Pid = x.Pid
	}
	e.At = orFirst(e.At, x.Stopped)
	x.Exit = &e
	l.wakeLocked(id)
}

// execExitLocked records the exit of an exec as it was told; one that an answer told before stays, and was told now.
//
// +checklocks:l.mu
func (l *Ledger) execExitLocked(id string, x *bundle.ExecState, e bundle.Exit) {
	if x.Exit == nil {
		e.Told = false
		l.setExecExitLocked(id, x, e)
	}
	l.toldLocked(x.Exit)
	l.announceLocked()
}

// ExecWasDeleted tells whether the shim has deleted an exec that is still on record, with its exit.
func (l *Ledger) ExecWasDeleted(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.rec.Execs[id]
	return x != nil && x.Deleted && x.Exit != nil
}

// Execs are copies of the execs on record, by their ids.
func (l *Ledger) Execs() map[string]*bundle.ExecState { return l.Record().Execs }

// PendingExecs are the execs that were started and whose exit is not known.
func (l *Ledger) PendingExecs() (pending []string) {
	for id, x := range l.Execs() {
		if x.Pid != 0 && x.Exit == nil {
			pending = append(pending, id)
		}
	}
	return pending
}
