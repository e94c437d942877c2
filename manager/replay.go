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

// replay tells the exits that a living shim does not tell. It waits until the shim has given up on telling them and, after a start of the
// daemon, until subscribers can have come back; nothing is told once somebody deletes the task.
func (i *Instance) replay() {
	for {
		i.mu.Lock()
		changed := i.changed
		due, ok := i.ledger.replayDueLocked(i.state)
		i.mu.Unlock()
		if !ok {
			return
		}
		wait := max(time.Until(due), subscribersBack-time.Since(i.m.started))
		if wait <= 0 {
			i.askExecs(i.context())
			if !i.m.awaitFollower() {
				return
			}
			i.noteOOM()
			if i.beginSpeaking() {
				i.tellExits("replay")
				i.ledger.endSpeaking()
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

// replayFound is replayLater after a restore, which finds out first what ended while there was no daemon.
func (i *Instance) replayFound() {
	if i.kind != KindTask {
		return
	}
	if i.ledger.stoppedUntimed() {
		// Where State does not say when it ended, Wait says how.
		i.m.spawn(func() { _, _ = i.wait(i.context(), "") })
	}
	i.askExecs(i.context())
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ledger.replayLaterLocked()
	i.ledger.repeatLaterLocked()
}

// askExecs finds out the exits of execs that were running when the last daemon stopped. State is asked, whose answer is
// bounded in time; an exit that it gives without a time may not be known to the shim yet, and is what Wait says.
func (i *Instance) askExecs(ctx context.Context) {
	for _, id := range i.ledger.pendingExecs() {
		x := i.ledger.execOf(id)
		s, err := i.sendState(ctx, id)
		switch {
		case err != nil || s.Status != tasktypes.Status_STOPPED:
			// deleted, or its exit is told when it comes
		case hasTime(s.ExitedAt):
			i.ledger.learnExecExit(id, x, bundle.Exit{Status: s.ExitStatus, At: timeOf(s.ExitedAt)})
		default:
			i.ledger.firstSeenStopped(id)
			wctx, cancel := context.WithTimeout(ctx, execGrace)
			_, _ = i.wait(wctx, id)
			cancel()
		}
	}
}
