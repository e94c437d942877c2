// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"slices"
	"time"
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
