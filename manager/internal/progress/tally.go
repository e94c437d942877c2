// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"maps"
	"sync"
)

// Tally counts what becomes of the instances that a daemon finds at its start. Safe for concurrent use.
type Tally struct {
	mu sync.Mutex
	// +checklocks:mu
	undecided int // of so many it is not known yet
	// +checklocks:mu
	by      map[string]int
	settled chan struct{}
}

// NewTally counts by outcomes, each of which is none at first.
func NewTally(outcomes ...string) *Tally {
	t := &Tally{by: make(map[string]int), settled: make(chan struct{})}
	for _, o := range outcomes {
		t.by[o] = 0
	}
	return t
}

// Found counts an instance of which it is not known yet. Not after the last was decided.
func (t *Tally) Found() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.undecided++
}

// Decided counts what has become of one. True for the last.
func (t *Tally) Decided(outcome string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.by[outcome]++
	t.undecided--
	if t.undecided == 0 {
		close(t.settled)
	}
	return t.undecided == 0
}

// Settled is closed when it is known of all, but not where none was found.
func (t *Tally) Settled() <-chan struct{} { return t.settled }

// Counts is what has become of how many, and of how many that is not known yet.
func (t *Tally) Counts() (by map[string]int, undecided int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.by), t.undecided
}
