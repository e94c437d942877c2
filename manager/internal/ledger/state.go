// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"math"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// Changing runs a call that gives the task a new status, which is kept if the call succeeds; with UNKNOWN the shim is
// asked for it. While it runs, and after it has failed, the record does not stand for the status.
func (l *Ledger) Changing(to tasktypes.Status, call func() error) error {
	l.mu.Lock()
	l.status.underway++
	l.status.epoch++
	begun := l.status.epoch
	l.mu.Unlock()
	err := call()
	l.mu.Lock()
	l.status.underway--
	alone := l.status.epoch == begun && l.status.underway == 0
	l.status.epoch++
	known := err == nil && to != tasktypes.Status_UNKNOWN
	l.status.unsure = l.status.unsure || !known
	if known && l.rec.Task != nil && l.rec.Task.Exit == nil {
		l.rec.Task.Status = to.String()
		if alone {
			l.status.stated = time.Now()
		}
	}
	l.mu.Unlock()
	if known {
		l.Save()
	}
	return err
}

// LastKnown is the state as last known, while that can be stood for: with an exit on record, or with a pid that still
// is the process it was.
func (l *Ledger) LastKnown() (runtime.State, bool) {
	t, known := l.look()
	if !known {
		return runtime.State{}, false
	}
	return t.state(shimclient.ProcessID.Alive)
}

// Current is LastKnown where that is what the shim would say.
func (l *Ledger) Current() (runtime.State, bool) { return l.current(shimclient.ProcessID.Alive) }

// CurrentOften is Current for one who will ask again: init is held from now on, where it can be.
func (l *Ledger) CurrentOften() (runtime.State, bool) { return l.current(l.hold) }

func (l *Ledger) current(lives func(shimclient.ProcessID) bool) (runtime.State, bool) {
	t, _ := l.look()
	if !t.sure {
		return runtime.State{}, false
	}
	return t.state(lives)
}

// state is what the record tells; false when it cannot stand for it. lives is asked as by alive, if that matters.
func (t *looked) state(lives func(shimclient.ProcessID) bool) (runtime.State, bool) {
	s := runtime.State{
		Status: StatusOf(tasktypes.Status(tasktypes.Status_value[t.Status])), Pid: t.Pid,
		Stdin: t.Stdin, Stdout: t.Stdout, Stderr: t.Stderr, Terminal: t.Terminal, ExitedAt: t.Stopped,
	}
	if t.Exit != nil {
		s.Status, s.ExitStatus, s.ExitedAt = runtime.StoppedStatus, t.Exit.Status, t.Exit.At
		return s, true
	}
	// A created task may have been started just before its shim fell silent, and CRI deletes one that it takes for
	// never started.
	return s, s.Status != runtime.CreatedStatus && s.Status != 0 && t.alive(lives)
}

// StatusOf is a status of the Task API as containerd has it; 0 for one that is not known.
func StatusOf(s tasktypes.Status) runtime.Status {
	switch s {
	case tasktypes.Status_CREATED:
		return runtime.CreatedStatus
	case tasktypes.Status_RUNNING:
		return runtime.RunningStatus
	case tasktypes.Status_STOPPED:
		return runtime.StoppedStatus
	case tasktypes.Status_PAUSED:
		return runtime.PausedStatus
	case tasktypes.Status_PAUSING:
		return runtime.PausingStatus
	default:
		return 0
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

// StoppedAs is how a stopped process is answered for: with its exit where that is known, else with the status that the
// shim says and the time at which it was first seen stopped.
func (l *Ledger) StoppedAs(execID string, status uint32) (uint32, time.Time) {
	if e := l.Exit(execID); e != nil {
		return e.Status, e.At
	}
	return status, l.SeenStopped(execID)
}

// SeenStopped notes that a process was seen stopped whose exit is not known, and returns when it first was: now, unless
// that is on record. What is answered once stays.
func (l *Ledger) SeenStopped(execID string) (first time.Time) {
	first = time.Now().UTC()
	l.mu.Lock()
	var seen *time.Time
	if x := l.rec.Execs[execID]; x != nil {
		seen = &x.Stopped
	} else if execID == "" && l.rec.Task != nil {
		seen = &l.rec.Task.Stopped
	}
	news := seen != nil && seen.IsZero()
	switch {
	case news:
		*seen = first
	case seen != nil:
		first = *seen
	}
	l.mu.Unlock()
	if news {
		l.Save()
	}
	return first
}

// StoppedUntimed tells whether init is stopped and its exit not known: the shim gives no time with the state.
func (l *Ledger) StoppedUntimed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.rec.Task
	return t != nil && t.Exit == nil && !t.Stopped.IsZero()
}

// Fate is how far a task, or a sandbox, has come.
type Fate struct {
	Created   bool // the shim has made it
	Abandoned bool // its create, or the start of a sandbox, has come to nothing
	Deleted   bool // the shim has deleted it
	Lingers   bool // all that is left to do is to wait for the end of the shim
}

// NeverCreated tells whether a create has come to nothing. For what was created once, as a sandbox that did not start,
// it has no meaning.
func (f Fate) NeverCreated() bool { return f.Abandoned && !f.Created }

// Fate of the task or sandbox, as far as it is on record.
func (l *Ledger) Fate() Fate {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Fate{Created: l.rec.Created, Abandoned: l.rec.Abandoned, Deleted: l.rec.Deleted, Lingers: l.rec.Lingers}
}

// Begin starts the record of an instance that there is nothing of yet.
func (l *Ledger) Begin(runtime string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec = bundle.Record{
		Version: bundle.RecordVersion, Runtime: runtime, Begun: time.Now().UTC(), BootID: shimclient.BootID(),
	}
}

// Load takes over a record, as that which an earlier daemon wrote.
func (l *Ledger) Load(rec *bundle.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.exitOfLocked("") != nil
	l.rec = *cloneRecord(rec)
	if !known && l.exitOfLocked("") != nil {
		close(l.exited)
	}
}

// Created records that the shim has made the task, or the sandbox, and the exit of its init if that was told already.
// The state of the instance changes in the same step.
func (l *Ledger) Created(t *bundle.TaskState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.Created = true
	t.Status = tasktypes.Status_CREATED.String()
	l.rec.Task = t
	if e, ok := l.hearing.exits[process{"", t.Pid}]; ok {
		l.exitLocked(e)
	}
}

// Answered records that the shim knows the task, or the sandbox.
func (l *Ledger) Answered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.Created = true
}

// Abandon records that the create has come to nothing. A daemon that dies while it is undone, which may take as long
// as a shim is silent, leaves the bundle for the next one, which must not take what the shim has made after all for a
// task.
func (l *Ledger) Abandon() error {
	l.mu.Lock()
	l.rec.Abandoned = true
	l.mu.Unlock()
	return l.Persist()
}

// MarkLingering records that all that is left to do is to wait for the end of the shim. A daemon that dies meanwhile
// leaves the bundle for the next one, which must not take the task for a living one.
func (l *Ledger) MarkLingering() {
	l.mu.Lock()
	l.rec.Lingers = true
	l.mu.Unlock()
	l.Save()
}

// MarkDeleted records that the shim has deleted the task.
func (l *Ledger) MarkDeleted() {
	l.mu.Lock()
	l.rec.Deleted = true
	l.mu.Unlock()
	l.Save()
}

// StatedWithin tells whether the shim has said the status in the time d before now. containerd asks for the State of
// each task right after its Start was answered.
func (l *Ledger) StatedWithin(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.status.stated.IsZero() && time.Since(l.status.stated) < d
}

// Epoch is to be taken before State is asked, and given to LearnState with the answer.
func (l *Ledger) Epoch() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status.epoch
}

// LearnState keeps what State said, and its exit. asked is the epoch of the status when it was asked.
func (l *Ledger) LearnState(s *taskapi.StateResponse, asked uint64) {
	l.mu.Lock()
	l.status.stated = time.Now()
	t := l.taskLocked()
	news := t.Status != s.Status.String() || t.Stdin != s.Stdin || t.Stdout != s.Stdout || t.Stderr != s.Stderr
	t.Stdin, t.Stdout, t.Stderr, t.Terminal = s.Stdin, s.Stdout, s.Stderr, s.Terminal
	if s.Status == tasktypes.Status_STOPPED && HasTime(s.ExitedAt) {
		// Without a time it is a process that has ended and whose exit the shim has not seen yet.
		l.exitLocked(bundle.Exit{Pid: s.Pid, Status: s.ExitStatus, At: TimeOf(s.ExitedAt)})
		l.replayLaterLocked()
	} else if t.Exit == nil && l.status.epoch == asked && l.status.underway == 0 {
		t.Status = s.Status.String()
		l.status.unsure = s.Status == tasktypes.Status_STOPPED
	}
	switch {
	case s.Status != tasktypes.Status_STOPPED:
		t.Stopped = time.Time{}
	case t.Stopped.IsZero():
		t.Stopped = time.Now().UTC()
	}
	l.mu.Unlock()
	if news {
		l.Save()
	}
}
