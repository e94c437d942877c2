// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"time"

	"github.com/shimyard/shimyard/manager/internal/failpoint"
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
	// oomPause is between telling an OOM kill and the next repeat of it, until the exit is told or the daemon is not
	// young any more. Clients take the reason from what came before the exit, which the shim tells at a time of its
	// own: the shorter the pause, the fewer come back between the last repeat and the exit.
	oomPause = time.Second
)

// repeat tells exits, and OOM kills before them, again until none is owed or the task is deleted. While a Delete is under way it waits for what
// becomes of that.
func (i *Instance) repeat() {
	for {
		i.mu.Lock()
		st, changed := i.state, i.changed
		due, ok := i.ledger.repeatDueLocked(st)
		i.mu.Unlock()
		if !ok {
			return
		}
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

// repeatNow tells again what is due.
func (i *Instance) repeatNow() {
	oom, due := i.ledger.takeRepeats()
	failpoint.Here("repeat-counted")
	i.noteOOM()
	if !i.beginSpeaking() {
		return
	}
	defer i.ledger.endSpeaking()
	i.tellOOMIf(oom)
	for _, id := range due {
		if id == "" {
			i.tellOOM()
		}
		if e := i.ledger.exit(id); e != nil {
			i.publishExit(id, *e)
			metrics.ExitTold("repeat")
		}
	}
}

// beginSpeaking tells whether something may be told of the task; the caller calls the ledger's endSpeaking then.
func (i *Instance) beginSpeaking() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ledger.beginSpeakingLocked(i.state)
}
