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

// replay tells, after a start of the daemon, the exits that a living shim could not tell while there was no daemon. It waits until the
// shim has given up on telling them and subscribers can have come back; nothing is told once somebody deletes the task.
func (i *Instance) replay() {
	e := i.exit("")
	if e == nil || e.Told || i.kind != KindTask {
		return
	}
	if !i.sleep(max(time.Until(e.At.Add(ownRetries)), subscribersBack-time.Since(i.m.started))) {
		return
	}
	i.askExecs(i.context())
	if st, _ := i.watch(); st == running && !i.wasDeleted() {
		i.tellExits()
	}
}

// sleep waits for d; false when the instance stopped running meanwhile, or the manager was closed.
func (i *Instance) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		st, changed := i.watch()
		if st != running {
			return false
		}
		select {
		case <-changed:
		case <-t.C:
			return true
		case <-i.m.ctx.Done():
			return false
		}
	}
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
