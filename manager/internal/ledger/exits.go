// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"math"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/bundle"
)

const (
	// ExitUnknown is the status of a process whose exit was not seen, as in stock containerd and in CRI.
	ExitUnknown = 255
	// ExitKilled is the status of a process that SIGKILL ended: the kernel's for lack of memory, or a client's.
	ExitKilled = 128 + 9
)

// process names one process of a task: init ("") or an exec, by its pid, since ids are used again.
type process struct {
	exec string
	pid  uint32
}

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

// exitOfLocked is the exit in the record itself.
//
// +checklocks:l.mu
func (l *Ledger) exitOfLocked(execID string) *bundle.Exit {
	if execID == "" {
		if l.rec.Task == nil {
			return nil
		}
		return l.rec.Task.Exit
	}
	if x := l.rec.Execs[execID]; x != nil {
		return x.Exit
	}
	return nil
}

// waiting is a Wait call that is under way.
type waiting struct {
	execID string
	cancel context.CancelFunc
}

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

// ToExit is an exit as containerd has it.
func ToExit(e *bundle.Exit) *runtime.Exit {
	return &runtime.Exit{Pid: e.Pid, Status: e.Status, Timestamp: e.At}
}

// HasTime tells whether a shim's timestamp of an exit can be one. Shims leave it out, or write the zero time (year 1).
// Clients convert what they get to Unix nanoseconds, which end in the year 2262.
func HasTime(t *timestamppb.Timestamp) bool {
	return t != nil && t.IsValid() && t.Seconds > 0 && t.Seconds < math.MaxInt64/int64(time.Second)
}

// TimeOf reads a shim's timestamp of an exit; the zero time when it gives none. Where the exit is recorded the time of
// first sight is put there.
func TimeOf(t *timestamppb.Timestamp) time.Time {
	if !HasTime(t) {
		return time.Time{}
	}
	return t.AsTime()
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
