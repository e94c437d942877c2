// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"slices"
	"time"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/metrics"
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
)

// toldLocked records that an exit was told. It returns without an effect when it was told before.
func (i *Instance) toldLocked(e *bundle.Exit) {
	if e.Told {
		return
	}
	e.Told = true
	if now := time.Now(); now.Sub(i.m.started) < youth {
		e.Owed, e.Spoken = repeats, now.UTC()
		i.repeatLater()
	}
}

// repeatLater makes what is owed be told again, once for each instance at a time. The caller holds the lock.
func (i *Instance) repeatLater() {
	_, due := i.owedLocked()
	if i.repeating || i.kind != KindTask || due.IsZero() {
		return
	}
	i.repeating = true
	// The manager's lock may not be taken under the instance's.
	time.AfterFunc(time.Until(due), func() { i.m.spawn(i.repeat) })
}

// repeat tells exits again until none is owed or the task is deleted. While a Delete is under way it waits for what
// becomes of that.
func (i *Instance) repeat() {
	for {
		i.mu.Lock()
		_, due := i.owedLocked()
		st, changed := i.state, i.changed
		if due.IsZero() || !st.listed() || i.rec.Deleted {
			i.repeating = false
			i.mu.Unlock()
			return
		}
		i.mu.Unlock()
		wait := time.Until(due)
		switch {
		case st == deleting:
			wait = time.Hour // until that has succeeded or failed
		case wait <= 0:
			i.repeatNow()
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-i.m.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// owedLocked lists the processes whose exit is to be told again, execs in order of their ids, then init (""), and when
// the first of them is.
func (i *Instance) owedLocked() (ids []string, first time.Time) {
	add := func(id string, e *bundle.Exit) {
		if e == nil || !e.Told || e.Owed <= 0 {
			return
		}
		ids = append(ids, id)
		if due := i.repeatDue(e); first.IsZero() || due.Before(first) {
			first = due
		}
	}
	for id, x := range i.rec.Execs {
		if !x.Deleted {
			add(id, x.Exit)
		}
	}
	slices.Sort(ids)
	add("", i.exitOfLocked(""))
	return ids, first
}

// repeatDue is when an exit is to be told again. A new daemon begins its pauses at its own start.
func (i *Instance) repeatDue(e *bundle.Exit) time.Time {
	from := e.Spoken
	if from.Before(i.m.started) {
		from = i.m.started
	}
	return from.Add(firstRepeatPause << max(0, repeats-e.Owed))
}

// repeatNow tells again what is due. That it is done is on record before, so that a crash costs a repeat and never
// makes one too many.
func (i *Instance) repeatNow() {
	i.mu.Lock()
	ids, _ := i.owedLocked()
	var due []string
	for _, id := range ids {
		if e := i.exitOfLocked(id); !time.Now().Before(i.repeatDue(e)) {
			e.Owed--
			e.Spoken = time.Now().UTC()
			due = append(due, id)
		}
	}
	i.mu.Unlock()
	i.save()
	failpoint("repeat-counted")
	i.noteOOM()
	if !i.beginSpeaking() {
		return
	}
	defer i.endSpeaking()
	for _, id := range due {
		if id == "" {
			i.tellOOM()
		}
		if e := i.exit(id); e != nil {
			i.publishExit(id, *e)
			metrics.ExitTold("repeat")
		}
	}
}

// beginSpeaking tells whether something may be told of a task, which it is not once its Delete has begun; that waits
// for endSpeaking.
func (i *Instance) beginSpeaking() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.rec.Deleted || i.state != running && i.state != restoring {
		return false
	}
	if i.speakers == 0 {
		i.silence = make(chan struct{})
	}
	i.speakers++
	return true
}

func (i *Instance) endSpeaking() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.speakers--; i.speakers == 0 {
		close(i.silence)
	}
}

// awaitSilence waits for the end of what is being told, which takes no longer than a publish and the write of a record.
// The caller has claimed the task's Delete: nothing more begins.
func (i *Instance) awaitSilence() {
	i.mu.Lock()
	speaks, silence := i.speakers > 0, i.silence
	i.mu.Unlock()
	if speaks {
		<-silence
	}
}
