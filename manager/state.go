// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/ledger"
)

// Kind tells tasks from sandboxes. Both live in one id space.
type Kind string

const (
	// KindTask is a container's task.
	KindTask Kind = "task"
	// KindSandbox is a sandbox of the "shim" sandboxer.
	KindSandbox Kind = "sandbox"
)

// state of an instance. Whether its shim answers is the process's state, not the instance's.
type state int

const (
	// launching: the id is reserved, nothing is listed yet. Ends in running or reaping.
	launching state = iota
	// restoring: found on disk, listed, its shim has not yet said what it knows. Ends in running, reaping or dead.
	restoring
	// running: created and in the shim's hands, whether its process still runs or has exited.
	running
	// deleting: a Delete is under way. Ends in what it was (failed: may be retried), reaping (a part is left) or gone.
	deleting
	// reaping: never became a task, or is no longer one; what is left of it is being removed, and nothing is told of
	// it.
	reaping
	// dead: its shim is proven dead; exit and delete are told, then it is cleaned up.
	dead
	// gone: nothing is left, the id is free.
	gone
)

func (s state) String() string {
	return [...]string{"launching", "restoring", "running", "being deleted", "being cleaned up", "dead", "gone"}[s]
}

// listed tells whether tasks of this state are shown to clients.
func (s state) listed() bool { return s == restoring || s == running || s == deleting }

// stage is the state in the words of the ledger.
func (s state) stage() ledger.Stage {
	switch s {
	case launching:
		return ledger.Creating
	case restoring:
		return ledger.Restoring
	case running:
		return ledger.Running
	case deleting:
		return ledger.Deleting
	default:
		return ledger.Ended
	}
}

// ending tells whether the id will be free by itself.
func (s state) ending() bool { return s == deleting || s == reaping || s == dead || s == gone }

// allowed are the states that may follow each state. Every event below is one method, which says why one follows the
// other; DESIGN.md has the table for readers.
var allowed = map[state][]state{
	launching: {running, reaping},
	restoring: {running, deleting, reaping, dead, gone},
	running:   {deleting, dead},
	deleting:  {restoring, running, reaping, gone},
	reaping:   {gone},
	dead:      {gone},
	gone:      nil,
}

// misstep is what is done about a change that is not allowed: a fault in this package. Tests have it panic. A daemon
// goes on with the change, since one that is refused would leave the instance for ever in a state that it is not in.
var misstep = func(ctx context.Context, from, to state) {
	log.G(ctx).Errorf("bug: an instance that is %s must not become %s", from, to)
}

// inStep has the ledger judge the stage of the instance in one step with it: no event changes the state before f has
// returned. It is the only way to a stage. In f nothing is called but the ledger.
func (i *Instance) inStep(f func(ledger.Stage)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i.state.stage())
}

// toLocked changes the state and wakes all who watch it. It is the only function that does.
func (i *Instance) toLocked(st state) {
	if i.state == st || i.state == gone {
		return
	}
	if !slices.Contains(allowed[i.state], st) {
		misstep(i.context(), i.state, st)
	}
	i.observeRestoredLocked(st)
	i.state, i.since = st, time.Now()
	i.announceLocked()
}

// announceLocked wakes all who watch the instance.
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
	case launching:
		// One step with onExitEvent's: an exit that is heard between the two would be held against a pid that is not on
		// record, and be taken for an earlier task's.
		i.toLocked(running)
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
	case launching:
		i.toLocked(reaping)
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
	case restoring:
		// One step with onDeath's: who finds it dead and running before asks whether it was ever created.
		i.ledger.Answered()
		i.toLocked(running)
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
	case restoring:
		i.toLocked(reaping)
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
	case restoring, running:
		i.toLocked(dead)
		return true
	default:
		return false
	}
}

// onDelete: a caller wants it deleted. The state before tells the caller whether the delete is its to do: it is if
// that was running or, with force, restoring (its shim has not answered since the daemon's start).
func (i *Instance) onDelete(force bool) (before state, changed <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	before = i.state
	if before == running || before == restoring && force {
		i.claimed = before
		i.toLocked(deleting)
	}
	return before, i.changed
}

// onDeleteFailed: the delete did not succeed and may be tried again. True: the task is being restored again, which is
// for the caller to go on with.
func (i *Instance) onDeleteFailed() (restores bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case deleting:
		i.toLocked(i.claimed)
		i.ledger.TellLater() // in one step with the state, see due
		return i.claimed == restoring
	default:
		return false // only the delete that has claimed it ends the claim
	}
}

// onDeleted: there is no task any more, and something of it is left, be it a shim that has not ended yet.
func (i *Instance) onDeleted() {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case deleting:
		i.toLocked(reaping)
	default:
		// Found so at the start of the daemon: it is being cleaned up already.
	}
}

// onGone: nothing of it is left.
func (i *Instance) onGone() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.toLocked(gone)
}

// onExitEvent: the shim told an exit, of init ("") or of an exec.
func (i *Instance) onExitEvent(execID string, e bundle.Exit) {
	var ours bool
	i.inStep(func(s ledger.Stage) { ours = i.ledger.HearExit(s, execID, e) })
	if ours {
		i.ledger.SaveSoon()
	}
}

// onOOMEvent: the shim told, at a time by its own clock, that something in the task was killed for lack of memory.
func (i *Instance) onOOMEvent(at time.Time) {
	if i.ledger.HearOOM(at) {
		i.ledger.SaveSoon()
	}
}

// onDeleteEvent: the shim told that the task is deleted.
func (i *Instance) onDeleteEvent(pid uint32) {
	var ours bool
	i.inStep(func(s ledger.Stage) { ours = i.ledger.HearDelete(s, pid) })
	if ours {
		i.ledger.SaveSoon()
	}
}
