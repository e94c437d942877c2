// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"context"
	"time"

	"github.com/containerd/log"
)

// Missed notes that a create found no shim: one more is kept ahead from now on, up to warm of them.
func (a *Account[S]) Missed(key string, warm int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.shelfLocked(key)
	s.want = min(warm, s.want+1)
}

// busyPause is between two looks at whether creates still wait for their turn.
const busyPause = 20 * time.Millisecond

// Refill starts spares in the background, one after the other, until as many are idle as are wanted, and none while
// creates wait for their turn: what it would take of the machine is theirs. start launches
// one, with a context that ends with Close; when it fails, no further one is started until a create has missed a shim
// again.
func (a *Account[S]) Refill(key string, start func(context.Context) (*Entry[S], error)) {
	a.lookAtMemory()
	a.mu.Lock()
	s := a.shelves[key]
	begin := s != nil && !s.filling && a.wantsLocked(s)
	if begin {
		s.filling = true
	}
	a.mu.Unlock()
	if begin {
		a.config.Spawn(func() { a.fill(key, s, start) })
	}
}

func (a *Account[S]) fill(key string, s *shelf[S], start func(context.Context) (*Entry[S], error)) {
	for {
		a.awaitTurn()
		size, more := a.reserve(key, s)
		if !more {
			return
		}
		e, err := start(a.ctx)
		if err != nil {
			a.unreserve(key, s, size)
			if a.ctx.Err() == nil {
				log.G(a.ctx).WithError(err).Warn("cannot start a spare shim; creates start their own")
			}
			return
		}
		a.mu.Lock()
		e.placed, e.counted = true, size
		a.mu.Unlock()
		a.Put(e, 0)
	}
}

// awaitTurn waits until no create waits for its turn, or the account is closed.
func (a *Account[S]) awaitTurn() {
	for a.config.Busy() {
		select {
		case <-time.After(busyPause):
		case <-a.ctx.Done():
			return
		}
	}
}

// IsFilling tells whether spares are being started: which shims wait may change by itself then.
func (a *Account[S]) IsFilling() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.shelves {
		if s.filling {
			return true
		}
	}
	return false
}

// reserve takes a place for the next spare. more is false when no further one is wanted.
func (a *Account[S]) reserve(key string, s *shelf[S]) (size uint64, more bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.wantsLocked(s) {
		s.filling = false
		a.tidyLocked(key, s)
		return 0, false
	}
	a.occupyLocked(a.size)
	return a.size, true
}

// unreserve gives back the place of a spare that could not be started.
func (a *Account[S]) unreserve(key string, s *shelf[S], size uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.releaseLocked(size)
	s.filling, s.want = false, 0
	a.tidyLocked(key, s)
}

// wantsLocked tells whether one more spare is wanted, and there is room for it.
//
// +checklocks:a.mu
func (a *Account[S]) wantsLocked(s *shelf[S]) bool {
	idle := 0
	for _, e := range s.open {
		if e.state == Idle {
			idle++
		}
	}
	return !a.closed && idle < s.want && a.fitsLocked(a.size)
}
