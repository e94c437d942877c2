// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
)

// inStep has the ledger judge the state of the instance in one step with it: no event changes it before f has returned.
// In f nothing is called but the ledger.
func (i *Instance) inStep(f func(life.State)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i.state)
}

// toLocked changes the state and wakes all who watch it. It is the only function that does.
//
// +checklocks:i.mu
func (i *Instance) toLocked(st life.State) {
	if i.state == st || i.state == life.Gone {
		return
	}
	if !slices.Contains(life.Allowed[i.state], st) {
		life.Misstep(i.context(), i.state, st)
	}
	i.observeRestoredLocked(st)
	i.state, i.since = st, time.Now()
	i.announceLocked()
}

// announceLocked wakes all who watch the instance.
//
// +checklocks:i.mu
func (i *Instance) announceLocked() {
	close(i.changed)
	i.changed = make(chan struct{})
}

func (i *Instance) announce() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.announceLocked()
}

// onCreated: the shim has created the task, or the sandbox.
func (i *Instance) onCreated(pid uint32, io runtime.IO) {
	task := ledger.NewTask(pid, i.shimPid(), io)
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case life.Launching:
		// One step with onExitEvent's: an exit that is heard between the two would be held against a pid that is not on
		// record, and be taken for an earlier task's.
		i.toLocked(life.Running)
		i.ledger.Created(task)
	default:
		// Only its create takes an instance out of launching.
	}
}

// onLaunchFailed: the create did not succeed. False when there is nothing to undo any more.
func (i *Instance) onLaunchFailed() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case life.Launching:
		i.toLocked(life.Reaping)
		return true
	default:
		return false
	}
}

// onAnswered: a restored instance's shim knows it.
func (i *Instance) onAnswered() {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case life.Restoring:
		// One step with onDeath's: who finds it dead and running before asks whether it was ever created.
		i.ledger.Answered()
		i.toLocked(life.Running)
	default:
		// Its shim died between the answer and now.
	}
}

// onUnknown: a restored instance has no task, since its shim is well and knows none, or since its record says that an
// earlier daemon was cleaning it up. True: that is for the caller to do.
func (i *Instance) onUnknown() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case life.Restoring:
		i.toLocked(life.Reaping)
		return true
	default:
		return false
	}
}

// onDeath: its shim process is proven dead. True: the caller is to clean up after it. In launching and deleting the
// create or the delete under way sees the death by itself; in the other states there is nothing that a shim could
// still do.
func (i *Instance) onDeath() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case life.Restoring, life.Running:
		i.toLocked(life.Dead)
		return true
	default:
		return false
	}
}

// onDelete: a caller wants it deleted. The state before tells the caller whether the delete is its to do: it is if
// that was running or, with force, restoring (its shim has not answered since the daemon's start).
func (i *Instance) onDelete(force bool) (before life.State, changed <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	before = i.state
	if before == life.Running || before == life.Restoring && force {
		i.claimed = before
		i.toLocked(life.Deleting)
	}
	return before, i.changed
}

// onDeleteFailed: the delete did not succeed and may be tried again. Where the task is being restored again, takeOver
// goes on, which has waited for what becomes of the delete.
func (i *Instance) onDeleteFailed() {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case life.Deleting:
		i.toLocked(i.claimed)
		i.ledger.TellLater() // in one step with the state, see due
	default:
		// Only the delete that has claimed it ends the claim.
	}
}

// onDeleted: there is no task any more, and something of it is left, be it a shim that has not ended yet.
func (i *Instance) onDeleted() {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case life.Deleting:
		i.toLocked(life.Reaping)
	default:
		// Found so at the start of the daemon: it is being cleaned up already.
	}
}

// onGone: nothing of it is left.
func (i *Instance) onGone() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.toLocked(life.Gone)
}

// onExitEvent: the shim told an exit, of init ("") or of an exec.
func (i *Instance) onExitEvent(execID string, e bundle.Exit) {
	i.inStep(func(s life.State) { i.ledger.HearExit(s, execID, e) })
}

// onOOMEvent: the shim told, at a time by its own clock, that something in the task was killed for lack of memory.
func (i *Instance) onOOMEvent(at time.Time) { i.ledger.HearOOM(at) }

// onDeleteEvent: the shim told that the task is deleted.
func (i *Instance) onDeleteEvent(pid uint32) {
	i.inStep(func(s life.State) { i.ledger.HearDelete(s, pid) })
}

// outcomeOf is what became of an instance that was found at the start, by the state that it leaves restoring for; ""
// while that is not decided.
func outcomeOf(st life.State) string {
	switch st {
	case life.Running:
		return "running"
	case life.Reaping:
		return "undone"
	case life.Dead:
		return "dead"
	case life.Gone:
		return "left_alone"
	}
	return ""
}

// observeRestoredLocked counts an instance that was found at the start, once it is decided what becomes of it, and
// has it reported when that is so of all.
//
// +checklocks:i.mu
func (i *Instance) observeRestoredLocked(st life.State) {
	outcome := outcomeOf(st)
	if !i.found || outcome == "" {
		return
	}
	i.found = false
	metrics.Restored(outcome)
	if i.m.tally.Decided(outcome) {
		metrics.RestoreStage("settled", time.Since(i.m.desk.Started()))
		i.m.spawn(i.m.reportRestored) // not here: under this lock nothing is written
	}
}
