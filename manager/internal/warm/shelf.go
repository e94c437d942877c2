// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/log"
)

// Waiting are the shims that are idle at this moment.
func (a *Account[S]) Waiting() []S {
	a.mu.Lock()
	defer a.mu.Unlock()
	var shims []S
	for _, e := range a.idleLocked() {
		shims = append(shims, e.Shim)
	}
	return shims
}

// StateOf is what the account knows of a shim at this moment.
func (a *Account[S]) StateOf(e *Entry[S]) State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return e.state
}

// +checklocks:a.mu
func (a *Account[S]) idleLocked() (idle []*Entry[S]) {
	for _, s := range a.shelves {
		for _, e := range s.open {
			if e.state == Idle {
				idle = append(idle, e)
			}
		}
	}
	return idle
}

// +checklocks:a.mu
func (a *Account[S]) shelfLocked(key string) *shelf[S] {
	s := a.shelves[key]
	if s == nil {
		s = &shelf[S]{}
		a.shelves[key] = s
	}
	return s
}

// shelveLocked puts a shim with room for a task last on its shelf, as an idle one where no task has it. watch tells
// that the memory is to be watched from now on: the caller spawns that once the lock is released.
//
// +checklocks:a.mu
func (a *Account[S]) shelveLocked(e *Entry[S]) (watch bool) {
	if !e.hasRoomLocked() {
		return false
	}
	s := a.shelfLocked(e.key)
	s.remove(e)
	s.open = append(s.open, e)
	if e.tasks > 0 || e.leaving > 0 || !e.placed || e.state == Idle {
		return false
	}
	e.becomeLocked(Idle)
	e.since = time.Now()
	e.expiry = time.AfterFunc(a.config.Idle, func() { a.expire(e) })
	return a.beginWatchLocked()
}

func (s *shelf[S]) remove(e *Entry[S]) {
	if n := slices.Index(s.open, e); n >= 0 {
		s.open = slices.Delete(s.open, n, n+1)
	}
}

// tidyLocked forgets a key that is of no use.
//
// +checklocks:a.mu
func (a *Account[S]) tidyLocked(key string, s *shelf[S]) {
	if len(s.open) == 0 && s.want == 0 && !s.filling {
		delete(a.shelves, key)
	}
}

// placeLocked gives the shim one of the places; false when there is none for it.
//
// +checklocks:a.mu
func (a *Account[S]) placeLocked(e *Entry[S]) bool {
	if !e.placed && a.fitsLocked(e.size) {
		a.occupyLocked(e.size)
		e.placed, e.counted = true, e.size
	}
	return e.placed
}

// vacateLocked takes the shim's place from it.
//
// +checklocks:a.mu
func (a *Account[S]) vacateLocked(e *Entry[S]) {
	if e.placed {
		e.placed = false
		a.releaseLocked(e.counted)
	}
}

// +checklocks:a.mu
func (a *Account[S]) occupyLocked(bytes uint64) {
	a.places++
	a.held += bytes
}

// +checklocks:a.mu
func (a *Account[S]) releaseLocked(bytes uint64) {
	a.places--
	a.held -= bytes
}

// retireLocked lets the shim be given to no task any more.
//
// +checklocks:a.mu
func (a *Account[S]) retireLocked(e *Entry[S], why string) {
	if !e.retiredLocked() {
		a.config.Retired(why)
		e.becomeLocked(Retired)
	}
	a.vacateLocked(e)
	if s := a.shelves[e.key]; s != nil {
		s.remove(e)
		a.tidyLocked(e.key, s)
	}
}

// noRoomLocked is why a shim may not go on.
//
// +checklocks:a.mu
func (a *Account[S]) noRoomLocked(e *Entry[S]) string {
	switch {
	case a.closed:
		return WhyStop
	case e.wornOutLocked():
		return WhyWorn
	case a.places < a.config.Limit && !a.fitsLocked(e.size):
		return WhyMemory
	}
	return WhyCeiling
}

// expire ends a shim that was idle for the whole idle time, and lowers what is kept ahead.
func (a *Account[S]) expire(e *Entry[S]) {
	a.mu.Lock()
	due := e.state == Idle && time.Since(e.since) >= a.config.Idle
	if due {
		if s := a.shelves[e.key]; s != nil {
			s.want = max(0, s.want-1)
		}
		a.retireLocked(e, WhyIdle)
	}
	a.mu.Unlock()
	if due {
		a.finish(e)
	}
}

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
			if a.unreserve(key, s, size) && a.ctx.Err() == nil {
				log.G(a.ctx).WithError(err).
					Warn("cannot start a spare shim; creates start their own, and it is tried again with each that misses one")
			}
			return
		}
		a.mu.Lock()
		e.placed, e.counted = true, size
		if a.unable == key {
			a.unable = ""
		}
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

// unreserve gives back the place of a spare that could not be started. news tells that it could before, as far as is
// known: where spares fail, each create that misses one has another tried.
func (a *Account[S]) unreserve(key string, s *shelf[S], size uint64) (news bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.releaseLocked(size)
	s.filling, s.want = false, 0
	a.tidyLocked(key, s)
	news, a.unable = a.unable != key, key
	return news
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
