// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package life is the states of an instance, and which may follow which.
//
// It holds no instance and changes no state: one function of package manager does that, along the table here.
package life

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
)

// Kind tells tasks from sandboxes. Both live in one id space.
type Kind string

const (
	// Task is a container's task.
	Task Kind = "task"
	// Sandbox is a sandbox of the "shim" sandboxer.
	Sandbox Kind = "sandbox"
)

// State of an instance. Whether its shim answers is the process's state, not the instance's.
type State int

const (
	// Launching: the id is reserved, nothing is listed yet. Ends in running or reaping.
	Launching State = iota
	// Restoring: found on disk, listed, its shim has not yet said what it knows. Ends in running, reaping or dead.
	Restoring
	// Running: created and in the shim's hands, whether its process still runs or has exited.
	Running
	// Deleting: a Delete is under way. Ends in what it was (failed: may be retried), reaping (a part is left) or gone.
	Deleting
	// Reaping: never became a task, or is no longer one; what is left of it is being removed, and nothing is told of
	// it.
	Reaping
	// Dead: its shim is proven dead; exit and delete are told, then it is cleaned up.
	Dead
	// Gone: nothing is left, the id is free.
	Gone
)

func (s State) String() string {
	return [...]string{"launching", "restoring", "running", "being deleted", "being cleaned up", "dead", "gone"}[s]
}

// IsListed tells whether tasks of this state are shown to clients.
func (s State) IsListed() bool { return s == Restoring || s == Running || s == Deleting }

// IsEnding tells whether the id will be free by itself.
func (s State) IsEnding() bool { return s == Deleting || s == Reaping || s == Dead || s == Gone }

// Allowed are the states that may follow each state. Each event is one method of the instance, which says why one
// follows the other; DESIGN.md has the table for readers.
var Allowed = map[State][]State{
	Launching: {Running, Reaping},
	Restoring: {Running, Deleting, Reaping, Dead, Gone},
	Running:   {Deleting, Dead},
	Deleting:  {Restoring, Running, Reaping, Gone},
	Reaping:   {Gone},
	Dead:      {Gone},
	Gone:      nil,
}

// Misstep is what is done about a change that is not allowed: a fault in package manager. Tests have it panic. A daemon
// goes on with the change, since one that is refused would leave the instance for ever in a state that it is not in.
var Misstep = func(ctx context.Context, from, to State) {
	log.G(ctx).Errorf("bug: an instance that is %s must not become %s", from, to)
}

// ErrNone is the answer for an id that is not known, or that is not yet, or no longer, a task.
func ErrNone(k Kind, id string) error {
	return errors.Wrapf(errdefs.ErrNotFound, "%s %s", k, id)
}
