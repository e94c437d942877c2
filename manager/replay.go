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
			i.tellExits()
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
	i.askExecs(i.context())
	i.mu.Lock()
	defer i.mu.Unlock()
	i.replayLater()
}

// askExecs finds out the exits of execs that were running when the last daemon stopped.
func (i *Instance) askExecs(ctx context.Context) {
	for _, id := range i.pendingExecs() {
		s, err := i.sendState(ctx, id)
		if err != nil || s.Status != tasktypes.Status_STOPPED {
			continue // deleted, or its exit is told when it comes
		}
		i.mu.Lock()
		if x := i.rec.Execs[id]; x != nil && x.Exit == nil {
			x.Exit = &bundle.Exit{Pid: x.Pid, Status: s.ExitStatus, At: timeOf(s.ExitedAt)}
		}
		i.mu.Unlock()
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
