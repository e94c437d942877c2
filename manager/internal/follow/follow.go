// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package follow hears what shims tell, in the order in which it came to the daemon's exchange of events, and knows how
// far it has come with that: what it has caught up with is known before anything is said in a shim's place.
package follow

import (
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/events"
)

const (
	// quiet is how long no event comes to a follower that waits for one before nothing can be left in the exchange's
	// queues.
	quiet = 50 * time.Millisecond
	// quietLooks is the pause between two looks at whether the follower has caught up.
	quietLooks = 10 * time.Millisecond
)

// Follower hears the exits, deletions and OOM kills that shims tell, one after the other, in the order in which they
// came to the exchange. Until Follow is called it follows nothing, and there is nothing to wait for. Safe for
// concurrent use.
type Follower struct {
	spawn func(f func())
	sleep func(d time.Duration) bool

	// mu guards all below.
	mu sync.Mutex
	// +checklocks:mu
	following bool
	// +checklocks:mu
	idle time.Time // since when it waits for an event; zero while it handles one
	// +checklocks:mu
	upTo time.Time // the newest event that was handled, by the time at which its shim sent it
}

// New makes a follower. spawn runs f in a goroutine that the daemon's end waits for, sleep returns false when the daemon
// ends before d has passed.
func New(spawn func(f func()), sleep func(d time.Duration) bool) *Follower {
	return &Follower{spawn: spawn, sleep: sleep}
}

// Follow has hear handle each event that comes, until there is an error.
func (f *Follower) Follow(ch <-chan *events.Envelope, errs <-chan error, hear func(*events.Envelope)) {
	f.waits(nil)
	f.spawn(func() {
		defer f.end()
		for {
			select {
			case e := <-ch:
				f.handles()
				hear(e)
				f.waits(e)
			case <-errs:
				return
			}
		}
	})
}

func (f *Follower) handles() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle = time.Time{}
}

// waits: the follower has handled an event, nil before the first, and waits for the next.
func (f *Follower) waits(e *events.Envelope) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.following, f.idle = true, time.Now()
	if e != nil && e.Timestamp.After(f.upTo) && !e.Timestamp.After(f.idle) { // a time to come is of another clock
		f.upTo = e.Timestamp
	}
}

func (f *Follower) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.following = false
}

// Passed tells whether every event that had come to the exchange by a moment is handled: one that was sent later is, or
// none has come for a while. Without a follower there is nothing to wait for.
func (f *Follower) Passed(moment time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.following || f.upTo.After(moment) || !f.idle.IsZero() && time.Since(f.idle) >= quiet
}

// CatchUp waits until every event that has come to the exchange by now is handled, however many those are; false when
// the daemon ended before.
func (f *Follower) CatchUp() bool {
	for moment := time.Now(); !f.Passed(moment); {
		if !f.sleep(quietLooks) {
			return false
		}
	}
	return true
}

// HearAll waits, for d, until what shims have sent must have come to the exchange, and until all of that is handled.
// After it nothing that a shim which is dead by now has told is unknown. False when the daemon ended before.
func (f *Follower) HearAll(d time.Duration) bool {
	return f.CatchUp() && f.sleep(d) && f.CatchUp()
}
