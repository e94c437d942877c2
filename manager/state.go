// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

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
	// deleting: a Delete is under way. Ends in running (failed, may be retried), dead or gone.
	deleting
	// reaping: never became a task, or is no longer one; what is left of it is being removed without a word to anybody.
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

// ending tells whether the id will be free by itself.
func (s state) ending() bool { return s == deleting || s == reaping || s == dead || s == gone }
