// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package await

import (
	"sync"
)

// Group counts work that its owner waits for before it ends. Unlike a sync.WaitGroup it may grow at any time: what
// begins while Drain waits is waited for too, as long as anything is under way. The zero value is ready for use. Safe
// for concurrent use.
type Group struct {
	mu sync.Mutex
	// +checklocks:mu
	count int
	// +checklocks:mu
	waited chan struct{} // closed when count has come to 0; nil while Drain was not called
	// +checklocks:mu
	drained bool
}

// Enter counts the caller in until it calls leave, once. Not ok: the group is drained, and what begins now may be cut
// off at any moment.
func (g *Group) Enter() (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.drained {
		return func() {}, false
	}
	g.count++
	return g.leave, true
}

func (g *Group) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count--
	g.settleLocked()
}

// Go runs f in a goroutine, as a part of the group; outside of it once that is drained.
func (g *Group) Go(f func()) {
	leave, _ := g.Enter()
	go func() {
		defer leave()
		f()
	}()
}

// Drain makes the group end as soon as nothing is under way. The channel is closed then; it is the same for each call.
func (g *Group) Drain() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waited == nil {
		g.waited = make(chan struct{})
	}
	g.settleLocked()
	return g.waited
}

// +checklocks:g.mu
func (g *Group) settleLocked() {
	if g.count > 0 || g.waited == nil || g.drained {
		return
	}
	g.drained = true
	close(g.waited)
}
