// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/shimyard/shimyard/bundle"
)

// ownRetries is how long after an exit its shim may still tell it by itself: containerd's shims try again for 15 s after a crash of the
// daemon and for 45 s after a clean stop.
const ownRetries = time.Minute

// execGrace is how long an exec that has stopped is waited for.
const execGrace = 2 * time.Second

// replayLater makes an exit that was learnt from an answer be told if no event of the shim tells it: there may have been no daemon, or the
// shim's connection for events is out of order. Once for each instance at a time; the caller holds the lock.
func (i *Instance) replayLater() {
	if i.replaying || i.kind != KindTask || len(i.untoldLocked()) == 0 {
		return
	}
	i.replaying = true
	// Mostly the event is on its way. Nor may the manager's lock be taken under the instance's.
	time.AfterFunc(inFlight, func() { i.m.spawn(i.replay) })
}

// replay tells the exits that a living shim does not tell. It waits until the shim has given up on telling them and, after a start of the
// daemon, until subscribers can have come back; nothing is told once somebody deletes the task.
func (i *Instance) replay() {
	for {
		i.mu.Lock()
		due, changed := i.dueLocked(), i.changed
		if due.IsZero() || i.state != running || i.rec.Deleted {
			i.replaying = false
			i.mu.Unlock()
			return
		}
		i.mu.Unlock()
		wait := max(time.Until(due), subscribersBack-time.Since(i.m.started))
		if wait <= 0 {
			i.askExecs(i.context())
			if !i.m.awaitFollower() {
				return
			}
			i.noteOOM()
			if i.beginSpeaking() {
				i.tellExits("replay")
				i.endSpeaking()
			}
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-changed:
		case <-t.C:
		case <-i.m.ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// dueLocked is when the last of the exits that are known and untold may be told; zero when there is none.
func (i *Instance) dueLocked() (due time.Time) {
	for _, id := range i.untoldLocked() {
		e := i.exitOfLocked(id)
		if at := e.At.Add(ownRetries); e.Tries < maxTries && at.After(due) {
			due = at
		}
	}
	return due
}

// replayFound is replayLater after a restore, which finds out first what ended while there was no daemon.
func (i *Instance) replayFound() {
	if i.kind != KindTask {
		return
	}
	if i.stoppedUntimed() {
		// Where State does not say when it ended, Wait says how.
		i.m.spawn(func() { _, _ = i.wait(i.context(), "") })
	}
	i.askExecs(i.context())
	i.mu.Lock()
	defer i.mu.Unlock()
	i.replayLater()
	i.repeatLater()
}

// stoppedUntimed tells whether init is stopped and its exit not known: the shim gives no time with the state.
func (i *Instance) stoppedUntimed() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	t := i.rec.Task
	return t != nil && t.Exit == nil && !t.Stopped.IsZero()
}

// askExecs finds out the exits of execs that were running when the last daemon stopped. State is asked, whose answer is
// bounded in time; an exit that it gives without a time may not be known to the shim yet, and is what Wait says.
func (i *Instance) askExecs(ctx context.Context) {
	for _, id := range i.pendingExecs() {
		x := i.execOf(id)
		s, err := i.sendState(ctx, id)
		switch {
		case err != nil || s.Status != tasktypes.Status_STOPPED:
			// deleted, or its exit is told when it comes
		case hasTime(s.ExitedAt):
			i.learnExecExit(id, x, bundle.Exit{Status: s.ExitStatus, At: timeOf(s.ExitedAt)})
		default:
			i.firstSeenStopped(id)
			wctx, cancel := context.WithTimeout(ctx, execGrace)
			_, _ = i.wait(wctx, id)
			cancel()
		}
	}
}

// pendingExecs are the execs that were started and whose exit is not known.
func (i *Instance) pendingExecs() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var ids []string
	for id, x := range i.rec.Execs {
		if x.Pid != 0 && x.Exit == nil {
			ids = append(ids, id)
		}
	}
	return ids
}
