// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"slices"
	"time"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
)

// What acknowledges an exit is its task's Delete. Clients come back to a daemon that was started again in their own
// time: dockerd's subscription is later than the shim's retry of an event, and dockerd would say "running" for ever
// (https://github.com/moby/moby/issues/41303). So an exit that was told while the daemon was young, and whose task is
// still there, is told again, in the same words: clients that have heard it drop a repeat (moby compares pid and
// state).
const (
	// youth is for how long after the daemon's start what is told may not be heard by all.
	youth = 30 * time.Second
	// repeats is how often an exit is told again.
	repeats = 3
	// firstRepeatPause is between telling an exit and the first repeat of it; each further pause is twice the one
	// before. The last repeat comes 35 s after the first word.
	firstRepeatPause = 5 * time.Second
	// oomPause is between telling an OOM kill and the next repeat of it, until the exit is told or the daemon is not
	// young any more. Clients take the reason from what came before the exit, which the shim tells at a time of its
	// own: the shorter the pause, the fewer come back between the last repeat and the exit.
	oomPause = time.Second
	// maxTries bounds how often an exit is told where crashes leave it unknown whether it was.
	maxTries = 3
	// ownRetries is how long after an exit its shim may still tell it by itself: containerd's shims try again for 15 s
	// after a crash of the daemon and for 45 s after a clean stop.
	ownRetries = time.Minute
)

// InFlight is how long the events of a shim may be on their way after an answer of it, or after its death: they come on
// a connection of their own.
const InFlight = 200 * time.Millisecond

// Untold lists the processes whose exit is known and was not told: execs in order of their ids, then init ("").
func (l *Ledger) Untold() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.untoldLocked()
}

// +checklocks:l.mu
func (l *Ledger) untoldLocked() []string {
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

// Unspoken tells whether something of init's exit and of the deletion was not told yet; false while there is no exit.
func (l *Ledger) Unspoken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.exitOfLocked("")
	return e != nil && !(e.Told && e.DeleteTold)
}

// CountTry counts that an exit is about to be told, and returns it. Not ok: it is not known any more, or was told too
// often without it being known to have been.
func (l *Ledger) CountTry(execID string) (_ bundle.Exit, ok bool) {
	l.mu.Lock()
	e := l.exitOfLocked(execID)
	if e == nil || e.Tries >= maxTries {
		l.mu.Unlock()
		return bundle.Exit{}, false
	}
	e.Tries++
	exit := *e
	l.mu.Unlock()
	l.Save()
	return exit, true
}

// MarkTold records that an exit was told.
func (l *Ledger) MarkTold(execID string) {
	l.mu.Lock()
	if e := l.exitOfLocked(execID); e != nil {
		l.toldLocked(e)
	}
	l.mu.Unlock()
	l.Save()
}

// MarkDeletionTold records that the deletion of the task was told.
func (l *Ledger) MarkDeletionTold() {
	l.mu.Lock()
	if e := l.exitOfLocked(""); e != nil {
		e.DeleteTold = true
	}
	l.mu.Unlock()
	l.Save()
}

// TellLater has what is known told if the shim does not, and what is owed told again.
func (l *Ledger) TellLater() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replayLaterLocked()
	l.repeatLaterLocked()
}

// replayLaterLocked makes an exit that was learnt from an answer be told if no event of the shim tells it: there may
// have been no daemon, or the shim's connection for events is out of order. Once for each instance at a time.
//
// +checklocks:l.mu
func (l *Ledger) replayLaterLocked() {
	if l.telling.replaying || !l.tells || len(l.untoldLocked()) == 0 {
		return
	}
	l.telling.replaying = true
	// Mostly the event is on its way.
	l.desk.later(InFlight, func() { l.desk.Replay(l.keeper) })
}

// dueLocked is when the last of the exits that are known and untold may be told; zero when there is none.
//
// +checklocks:l.mu
func (l *Ledger) dueLocked() (due time.Time) {
	for _, id := range l.untoldLocked() {
		e := l.exitOfLocked(id)
		if at := e.At.Add(ownRetries); e.Tries < maxTries && at.After(due) {
			due = at
		}
	}
	return due
}

// toldLocked records that an exit was told. It returns without an effect when it was told before.
//
// +checklocks:l.mu
func (l *Ledger) toldLocked(e *bundle.Exit) {
	if e.Told {
		return
	}
	e.Told = true
	if e == l.exitOfLocked("") {
		l.telling.oomDue = time.Time{} // from here on it precedes each repeat of the exit
	}
	if now := time.Now(); now.Sub(l.desk.Started()) < youth {
		e.Owed, e.Spoken = repeats, now.UTC()
		l.repeatLaterLocked()
	}
}

// repeatOOMLocked makes an OOM kill be told again after a pause, as long as subscribers may have missed it.
//
// +checklocks:l.mu
func (l *Ledger) repeatOOMLocked() {
	l.telling.oomDue = time.Time{}
	if now := time.Now(); now.Sub(l.desk.Started()) < youth {
		l.telling.oomDue = now.Add(oomPause)
		l.repeatLaterLocked()
		l.announceLocked() // a repeat that waits for an exec's exit waits longer
	}
}

// firstDueLocked is when something is to be told again, zero when nothing is.
//
// +checklocks:l.mu
func (l *Ledger) firstDueLocked() time.Time {
	_, due := l.owedLocked()
	if oom := l.telling.oomDue; due.IsZero() || !oom.IsZero() && oom.Before(due) {
		return oom
	}
	return due
}

// repeatLaterLocked makes what is owed be told again, once for each instance at a time.
//
// +checklocks:l.mu
func (l *Ledger) repeatLaterLocked() {
	if l.telling.repeating || !l.tells || l.firstDueLocked().IsZero() {
		return
	}
	l.telling.repeating = true
	l.desk.later(0, func() { l.desk.Repeat(l.keeper) }) // it waits by itself: something may become due sooner
}

// owedLocked lists the processes whose exit is to be told again, execs in order of their ids, then init (""), and when
// the first of them is.
//
// +checklocks:l.mu
func (l *Ledger) owedLocked() (ids []string, first time.Time) {
	for id, x := range l.rec.Execs {
		if !x.Deleted && isOwed(x.Exit) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if isOwed(l.exitOfLocked("")) {
		ids = append(ids, "")
	}
	for _, id := range ids {
		if due := l.repeatDue(l.exitOfLocked(id)); first.IsZero() || due.Before(first) {
			first = due
		}
	}
	return ids, first
}

// isOwed tells whether an exit is to be told again.
func isOwed(e *bundle.Exit) bool { return e != nil && e.Told && e.Owed > 0 }

// repeatDue is when an exit is to be told again. A new daemon begins its pauses at its own start.
func (l *Ledger) repeatDue(e *bundle.Exit) time.Time {
	from := e.Spoken
	if from.Before(l.desk.Started()) {
		from = l.desk.Started()
	}
	return from.Add(firstRepeatPause << max(0, repeats-e.Owed))
}

// ReplayDue is when exits are to be told that the shim does not tell. Not ok: there is nothing to tell, and the replay
// has ended. The state and that are one step, see the package's doc.
func (l *Ledger) ReplayDue(s life.State) (due time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	due = l.dueLocked()
	l.telling.replaying = !due.IsZero() && s == life.Running && !l.rec.Deleted
	return due, l.telling.replaying
}

// RepeatDue is when exits are to be told again. Not ok: there is none, and the repeating has ended. The state and that
// are one step, see the package's doc.
func (l *Ledger) RepeatDue(s life.State) (due time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	due = l.firstDueLocked()
	l.telling.repeating = !due.IsZero() && s.IsListed() && !l.rec.Deleted
	return due, l.telling.repeating
}

// TakeRepeats counts what is due to be told again: an OOM kill, and the exits of the processes that it names. That it
// is done is on record before, so that a crash costs a repeat and never makes one too many.
func (l *Ledger) TakeRepeats() (oom bool, due []string) {
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
		l.Save()
	}
	return oom, due
}

// BeginSpeaking tells whether something may be told of a task, which it is not once its Delete has begun; that waits
// until end is called. The state and that are one step, see the package's doc.
func (l *Ledger) BeginSpeaking(s life.State) (end func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec.Deleted || s != life.Running && s != life.Restoring {
		return nil, false
	}
	if l.telling.speakers == 0 {
		l.telling.silence = make(chan struct{})
	}
	l.telling.speakers++
	return l.endSpeaking, true
}

func (l *Ledger) endSpeaking() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.telling.speakers--; l.telling.speakers == 0 {
		close(l.telling.silence)
	}
}

// AwaitSilence waits for the end of what is being told, which takes no longer than a publish and the write of a record.
// The caller has claimed the task's Delete: nothing more begins.
func (l *Ledger) AwaitSilence() {
	l.mu.Lock()
	speaks, silence := l.telling.speakers > 0, l.telling.silence
	l.mu.Unlock()
	if speaks {
		<-silence
	}
}
