// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"sync"
)

// Creation is what the undo of a create has to know of the Create that was sent. Safe for concurrent use: its lock
// may be taken while the instance's or the process's is held, and nothing is done under it. That is right because it
// says what a shim may still be doing, which no state decides and no decision about a state needs.
type Creation struct {
	mu sync.Mutex
	// +checklocks:mu
	answer <-chan struct{} // closed at that of a Create whose caller has left; nil when there is none
	// +checklocks:mu
	cut bool // a Create may still be under way in what the shim has run for it
}

// OnCallerLeft notes what is closed when the answer comes to a Create that no caller waits for any more.
func (c *Creation) OnCallerLeft(answer <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = answer
}

// Settle ends the wait for an answer that was owed: it has come, or is not waited for any more.
func (c *Creation) Settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = nil
}

// Owed is closed when the answer comes that the shim owes to a caller who has left; nil when it owes none.
func (c *Creation) Owed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answer
}

// SetCut notes whether a Create may have been cut off half way: its answer was lost, or it was sent by an earlier
// daemon.
func (c *Creation) SetCut(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
}

func (c *Creation) WasCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}
