// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"maps"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/shimyard/shimyard/bundle"
)

const (
	// ExitUnknown is the status of a process whose exit was not seen, as in stock containerd and in CRI.
	ExitUnknown = 255
	// ExitKilled is the status of a process that SIGKILL ended: the kernel's for lack of memory, or a client's.
	ExitKilled = 128 + 9
)

// LearnExit records the exit of the init process, once: the first one that is learnt stays, so that State, Wait,
// Delete and events agree. It wakes all Waits.
func (l *Ledger) LearnExit(e bundle.Exit) {
	l.mu.Lock()
	l.exitLocked(e)
	l.replayLaterLocked()
	l.mu.Unlock()
	l.Save()
}

// +checklocks:l.mu
func (l *Ledger) exitLocked(e bundle.Exit) {
	t := l.taskLocked()
	if old := t.Exit; old != nil {
		if e.Told && e.Pid != 0 {
			old.Pid = e.Pid // a Wait was answered while Start had not said yet that its pid is not Create's
		}
		if e.Told {
			l.toldLocked(old)
		}
		l.announceLocked()
		return
	}
	if e.Pid == 0 {
		e.Pid = t.Pid
	}
	if h, ok := l.heardLocked(e); ok {
		e.Pid, e.At, e.Told = h.Pid, h.At, true
	}
	e.At = orFirst(e.At, t.Stopped)
	e.DeleteTold = e.DeleteTold || l.hearing.deleted
	told := e.Told
	e.Told = false
	t.Exit = &e
	if told {
		l.toldLocked(&e)
	}
	t.Status = tasktypes.Status_STOPPED.String()
	l.releaseLocked()
	close(l.exited)
	l.wakeLocked("")
}

// wakeLocked makes the Waits for one process look again at what is known. Only those: a Wait call that is ended here
// goes on in the shim, which does not learn of it, and keeps a goroutine there until the process exits.
//
// +checklocks:l.mu
func (l *Ledger) wakeLocked(execID string) {
	for w := range l.waiters {
		if w.execID == execID {
			w.cancel()
		}
	}
	l.announceLocked()
}

// LearnDeath records what a dead shim leaves: the exit of init as it was found out, and an unknown exit for each exec
// that was running.
func (l *Ledger) LearnDeath(e bundle.Exit) {
	l.mu.Lock()
	for id, x := range l.rec.Execs {
		if x.Pid != 0 && x.Exit == nil {
			l.setExecExitLocked(id, x, bundle.Exit{Status: ExitUnknown, At: e.At})
		}
	}
	l.exitLocked(e)
	l.wakeLocked("")
	l.mu.Unlock()
	l.Save()
}

// Exit returns what is known of the exit of init ("") or of an exec; nil when it is not known.
func (l *Ledger) Exit(execID string) *bundle.Exit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return copyExit(l.exitOfLocked(execID))
}

// Exited is closed when the exit of init is known.
func (l *Ledger) Exited() <-chan struct{} { return l.exited }

// OnWake registers the cancel of a Wait call; the Wait calls the returned func when it is through.
func (l *Ledger) OnWake(execID string, cancel context.CancelFunc) (forget func()) {
	w := &waiting{execID, cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters[w] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiters, w)
	}
}

// orFirst is the time of an exit: as the shim gave it, else when the process was first seen stopped, else now.
func orFirst(at, seen time.Time) time.Time {
	switch {
	case !at.IsZero():
		return at
	case !seen.IsZero():
		return seen
	}
	return time.Now().UTC()
}

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

// +checklocks:l.mu
func (l *Ledger) keepLocked(execID string, e bundle.Exit) {
	if l.hearing.exits == nil {
		l.hearing.exits = make(map[process]bundle.Exit)
	}
	l.hearing.exits[process{execID, e.Pid}] = e
}

// heardLocked is what was heard of init's exit e before it was known: by its pid or, where the shim does not answer
// with one, by its words.
//
// +checklocks:l.mu
func (l *Ledger) heardLocked(e bundle.Exit) (bundle.Exit, bool) {
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

// PendingExecs are the execs that were started and whose exit is not known.
func (l *Ledger) PendingExecs() (pending []string) {
	for id, x := range l.Record().Execs {
		if x.Pid != 0 && x.Exit == nil {
			pending = append(pending, id)
		}
	}
	return pending
}
