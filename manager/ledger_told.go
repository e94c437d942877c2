// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"slices"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/shimyard/shimyard/bundle"
)

// untold lists the processes whose exit is known and was not told: execs in order of their ids, then init ("").
func (l *ledger) untold() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.untoldLocked()
}

func (l *ledger) untoldLocked() []string {
	var ids []string
	for id, x := range l.rec.Execs {
		if x.Pid != 0 && x.Exit != nil && !x.Exit.Told && !x.Deleted {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if e := l.exitOfLocked(""); e != nil && !e.Told {
		ids = append(ids, "")
	}
	return ids
}

// note changes what is recorded of a known exit. f runs under the lock.
func (l *ledger) note(execID string, f func(*bundle.Exit)) {
	l.mu.Lock()
	if e := l.exitOfLocked(execID); e != nil {
		f(e)
	}
	l.mu.Unlock()
	l.save()
}

// replayLaterLocked makes an exit that was learnt from an answer be told if no event of the shim tells it: there may
// have been no daemon, or the shim's connection for events is out of order. Once for each instance at a time.
func (l *ledger) replayLaterLocked() {
	if l.telling.replaying || !l.tells || len(l.untoldLocked()) == 0 {
		return
	}
	l.telling.replaying = true
	// Mostly the event is on its way.
	l.keeper.later(inFlight, l.keeper.replay)
}

// dueLocked is when the last of the exits that are known and untold may be told; zero when there is none.
func (l *ledger) dueLocked() (due time.Time) {
	for _, id := range l.untoldLocked() {
		e := l.exitOfLocked(id)
		if at := e.At.Add(ownRetries); e.Tries < maxTries && at.After(due) {
			due = at
		}
	}
	return due
}

// stoppedUntimed tells whether init is stopped and its exit not known: the shim gives no time with the state.
func (l *ledger) stoppedUntimed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.rec.Task
	return t != nil && t.Exit == nil && !t.Stopped.IsZero()
}

// pendingExecs are the execs that were started and whose exit is not known.
func (l *ledger) pendingExecs() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for id, x := range l.rec.Execs {
		if x.Pid != 0 && x.Exit == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// toldLocked records that an exit was told. It returns without an effect when it was told before.
func (l *ledger) toldLocked(e *bundle.Exit) {
	if e.Told {
		return
	}
	e.Told = true
	if e == l.exitOfLocked("") {
		l.telling.oomDue = time.Time{} // from here on it precedes each repeat of the exit
	}
	if now := time.Now(); now.Sub(l.keeper.daemonStart()) < youth {
		e.Owed, e.Spoken = repeats, now.UTC()
		l.repeatLaterLocked()
	}
}

// repeatOOMLocked makes an OOM kill be told again after a pause, as long as subscribers may have missed it.
func (l *ledger) repeatOOMLocked() {
	l.telling.oomDue = time.Time{}
	if now := time.Now(); now.Sub(l.keeper.daemonStart()) < youth {
		l.telling.oomDue = now.Add(oomPause)
		l.repeatLaterLocked()
		l.keeper.announceLocked() // a repeat that waits for an exec's exit waits longer
	}
}

// firstDueLocked is when something is to be told again, zero when nothing is.
func (l *ledger) firstDueLocked() time.Time {
	_, due := l.owedLocked()
	if oom := l.telling.oomDue; due.IsZero() || !oom.IsZero() && oom.Before(due) {
		return oom
	}
	return due
}

// repeatLaterLocked makes what is owed be told again, once for each instance at a time.
func (l *ledger) repeatLaterLocked() {
	if l.telling.repeating || !l.tells || l.firstDueLocked().IsZero() {
		return
	}
	l.telling.repeating = true
	l.keeper.later(0, l.keeper.repeat) // it waits by itself: something may become due sooner
}

// owedLocked lists the processes whose exit is to be told again, execs in order of their ids, then init (""), and when
// the first of them is.
func (l *ledger) owedLocked() (ids []string, first time.Time) {
	add := func(id string, e *bundle.Exit) {
		if e == nil || !e.Told || e.Owed <= 0 {
			return
		}
		ids = append(ids, id)
		if due := l.repeatDue(e); first.IsZero() || due.Before(first) {
			first = due
		}
	}
	for id, x := range l.rec.Execs {
		if !x.Deleted {
			add(id, x.Exit)
		}
	}
	slices.Sort(ids)
	add("", l.exitOfLocked(""))
	return ids, first
}

// repeatDue is when an exit is to be told again. A new daemon begins its pauses at its own start.
func (l *ledger) repeatDue(e *bundle.Exit) time.Time {
	from := e.Spoken
	if from.Before(l.keeper.daemonStart()) {
		from = l.keeper.daemonStart()
	}
	return from.Add(firstRepeatPause << max(0, repeats-e.Owed))
}

// replayDueLocked is when exits are to be told that the shim does not tell. Not ok: there is nothing to tell, and
// replay has ended.
func (l *ledger) replayDueLocked(st state) (due time.Time, ok bool) {
	due = l.dueLocked()
	l.telling.replaying = !due.IsZero() && st == running && !l.rec.Deleted
	return due, l.telling.replaying
}

// repeatDueLocked is when exits are to be told again. Not ok: there is none, and repeat has ended.
func (l *ledger) repeatDueLocked(st state) (due time.Time, ok bool) {
	due = l.firstDueLocked()
	l.telling.repeating = !due.IsZero() && st.listed() && !l.rec.Deleted
	return due, l.telling.repeating
}

// takeRepeats counts what is due to be told again: an OOM kill, and the exits of the processes that it names. That it
// is done is on record before, so that a crash costs a repeat and never makes one too many.
func (l *ledger) takeRepeats() (oom bool, due []string) {
	l.mu.Lock()
	if at := l.telling.oomDue; !at.IsZero() && !time.Now().Before(at) {
		oom = true
		l.repeatOOMLocked()
	}
	ids, _ := l.owedLocked()
	for _, id := range ids {
		if e := l.exitOfLocked(id); !time.Now().Before(l.repeatDue(e)) {
			e.Owed--
			e.Spoken = time.Now().UTC()
			due = append(due, id)
		}
	}
	l.mu.Unlock()
	if len(due) > 0 {
		l.save()
	}
	return oom, due
}

// beginSpeakingLocked tells whether something may be told of a task, which it is not once its Delete has begun; that
// waits for endSpeaking.
func (l *ledger) beginSpeakingLocked(st state) bool {
	if l.rec.Deleted || st != running && st != restoring {
		return false
	}
	if l.telling.speakers == 0 {
		l.telling.silence = make(chan struct{})
	}
	l.telling.speakers++
	return true
}

func (l *ledger) endSpeaking() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.telling.speakers--; l.telling.speakers == 0 {
		close(l.telling.silence)
	}
}

// awaitSilence waits for the end of what is being told, which takes no longer than a publish and the write of a record.
// The caller has claimed the task's Delete: nothing more begins.
func (l *ledger) awaitSilence() {
	l.mu.Lock()
	speaks, silence := l.telling.speakers > 0, l.telling.silence
	l.mu.Unlock()
	if speaks {
		<-silence
	}
}

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
