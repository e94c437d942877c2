// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"math"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/bundle"
)

// process names one process of a task: init ("") or an exec, by its pid, since ids are used again.
type process struct {
	exec string
	pid  uint32
}

// exitUnknown is the status of a process whose exit was not seen, as in stock containerd and in CRI.
const exitUnknown = 255

// learnExit records the exit of the init process, once: the first one that is learnt stays, so that State, Wait,
// Delete and events agree. It wakes all Waits.
func (l *ledger) learnExit(e bundle.Exit) {
	l.mu.Lock()
	l.exitLocked(e)
	l.replayLaterLocked()
	l.mu.Unlock()
	l.save()
}

func (l *ledger) exitLocked(e bundle.Exit) {
	if old := l.taskLocked().Exit; old != nil {
		if e.Told && e.Pid != 0 {
			old.Pid = e.Pid // a Wait was answered while Start had not said yet that its pid is not Create's
		}
		if e.Told {
			l.toldLocked(old)
		}
		l.keeper.announceLocked()
		return
	}
	if e.Pid == 0 {
		e.Pid = l.rec.Task.Pid
	}
	if h, ok := l.heardLocked(e); ok {
		e.Pid, e.At, e.Told = h.Pid, h.At, true
	}
	e.At = orFirst(e.At, l.rec.Task.Stopped)
	e.DeleteTold = e.DeleteTold || l.hearing.deleted
	told := e.Told
	e.Told = false
	l.rec.Task.Exit = &e
	if told {
		l.toldLocked(&e)
	}
	l.rec.Task.Status = tasktypes.Status_STOPPED.String()
	close(l.exited)
	l.wakeLocked("")
}

// wakeLocked makes the Waits for one process look again at what is known. Only those: a Wait call that is ended here
// goes on in the shim, which does not learn of it, and keeps a goroutine there until the process exits.
func (l *ledger) wakeLocked(execID string) {
	for w := range l.waiters {
		if w.execID == execID {
			w.cancel()
		}
	}
	l.keeper.announceLocked()
}

// learnDeath records what a dead shim leaves: the exit of init as it was found out, and an unknown exit for each exec
// that was running.
func (l *ledger) learnDeath(e bundle.Exit) {
	l.mu.Lock()
	for id, x := range l.rec.Execs {
		if x.Pid != 0 && x.Exit == nil {
			l.setExecExitLocked(id, x, bundle.Exit{Status: exitUnknown, At: e.At})
		}
	}
	l.exitLocked(e)
	l.wakeLocked("")
	l.mu.Unlock()
	l.save()
}

// exit returns what is known of the exit of init ("") or of an exec; nil when it is not known.
func (l *ledger) exit(execID string) *bundle.Exit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return copyExit(l.exitOfLocked(execID))
}

// exitOfLocked is the exit in the record itself.
func (l *ledger) exitOfLocked(execID string) *bundle.Exit {
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

// pid of the init process as last known; 0 means not known.
func (l *ledger) pid() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taskPidLocked()
}

// waiting is a Wait call that is under way.
type waiting struct {
	execID string
	cancel context.CancelFunc
}

// onWake registers the cancel of a Wait call; the Wait calls the returned func when it is through.
func (l *ledger) onWake(execID string, cancel context.CancelFunc) (forget func()) {
	w := &waiting{execID, cancel}
	l.mu.Lock()
	l.waiters[w] = struct{}{}
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		delete(l.waiters, w)
		l.mu.Unlock()
	}
}

func copyExit(e *bundle.Exit) *bundle.Exit {
	if e == nil {
		return nil
	}
	c := *e
	return &c
}

func toExit(e *bundle.Exit) *runtime.Exit {
	return &runtime.Exit{Pid: e.Pid, Status: e.Status, Timestamp: e.At}
}

// hasTime tells whether a shim's timestamp of an exit can be one. Shims leave it out, or write the zero time (year 1).
// Clients convert what they get to Unix nanoseconds, which end in the year 2262.
func hasTime(t *timestamppb.Timestamp) bool {
	return t != nil && t.IsValid() && t.Seconds > 0 && t.Seconds < math.MaxInt64/int64(time.Second)
}

// timeOf reads a shim's timestamp of an exit; the zero time when it gives none. Where the exit is recorded the time of
// first sight is put there.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if !hasTime(t) {
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
