// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"slices"
	"time"

	"github.com/containerd/log"
)

// State of a warm shim, as the account sees it. Whether it answers is the process's state, not the account's.
type State int

const (
	// Entered: it was launched, or found after a restart, and is neither given nor put on the shelf yet.
	Entered State = iota
	// Idle: it waits on the shelf for a task.
	Idle
	// Serving: it has tasks, or the last one is about to leave it and it will be idle then.
	Serving
	// Retired: it is given to no task any more. What it serves stays with it to the end.
	Retired
	// Ending: its owner ends it, and sees to what it leaves.
	Ending
)

func (s State) String() string {
	return [...]string{"entered", "idle", "serving", "retired", "ending"}[s]
}

// allowed are the states that may follow each state; manager/DESIGN.md has the table for readers.
var allowed = map[State][]State{
	Entered: {Idle, Serving, Retired},
	Idle:    {Serving, Retired},
	Serving: {Idle, Retired},
	Retired: {Ending},
	Ending:  nil,
}

// misstep is what is done about a change that is not allowed: a fault in this package. Tests have it panic; a daemon
// goes on with the change.
var misstep = func(from, to State) {
	log.L.Errorf("bug: a warm shim that is %s must not become %s", from, to)
}

// Limits say how the shims of one runtime are kept.
type Limits struct {
	// Warm is how many idle shims are kept ahead for one key, at most.
	Warm int
	// Reuse is how often a shim may take another task after one was deleted in good order.
	Reuse int
	// Share is how many tasks may be in one shim at a time; 1 or less: one.
	Share int
}

// Entry is what the account knows of one warm shim. It is made by [Account.Enter] and belongs to that account.
type Entry[S any] struct {
	// Shim is the owner's handle, given to Enter.
	Shim S

	key    string
	limits Limits

	// Guarded by Account.mu.
	state   State
	since   time.Time   // when it became idle
	expiry  *time.Timer // ends it when it was idle for too long; set while it is idle
	tasks   int         // that have it now; not kept any more once it is retired
	leaving int         // that are deleted and about to leave it
	worn    bool        // a task has left it
	reused  int         // tasks that it took after that
	placed  bool        // has one of the account's places
	size    uint64      // bytes that it holds, as measured last
	counted uint64      // of them in Account.held, while it has a place
}

// becomeLocked is the only function that changes the state.
func (e *Entry[S]) becomeLocked(st State) {
	if e.state == st {
		return
	}
	if !slices.Contains(allowed[e.state], st) {
		misstep(e.state, st)
	}
	if e.state == Idle {
		e.expiry.Stop()
	}
	e.state = st
}

// retiredLocked tells whether it is given to no task any more.
func (e *Entry[S]) retiredLocked() bool {
	return e.state == Retired || e.state == Ending
}

// hasRoomLocked tells whether it may take one more task.
func (e *Entry[S]) hasRoomLocked() bool {
	return !e.retiredLocked() && e.tasks < max(1, e.limits.Share) && !e.wornOutLocked()
}

// wornOutLocked tells whether it has taken as many tasks as it may after one was deleted.
func (e *Entry[S]) wornOutLocked() bool {
	return e.worn && e.reused >= e.limits.Reuse
}
