// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Why a shim is retired, as [Config].Retired is told.
const (
	WhyIdle       = "idle"       // no create wanted it for the whole idle time
	WhyWorn       = "worn"       // it has taken as many tasks as it may
	WhyDistrusted = "distrusted" // it did not do as it should
	WhyCeiling    = "ceiling"    // there are as many idle ones as there may be
	WhyMemory     = "memory"     // the machine's memory does not allow another idle one
	WhyDied       = "died"
	WhyStop       = "stop" // the daemon stops
)

// Config of an Account. The functions are the owner's.
type Config[S any] struct {
	// Limit is how many places there are for idle shims, of all keys together; 0: none is kept.
	Limit int
	// Idle is for how long a shim is kept that no create wants.
	Idle time.Duration
	// Memory is what idle shims may take of the machine's memory.
	Memory MemoryRule
	// Machine reads the machine's memory; nil asks the kernel.
	Machine func() Machine
	// Held reads how many bytes a shim holds alone.
	Held func(S) (uint64, error)
	// End ends a retired shim that has no task, and returns when that is done.
	End func(S)
	// Busy tells whether creates wait for their turn to start a shim: no spare is started in their way. nil: never.
	Busy func() bool
	// Spawn runs f in the background.
	Spawn func(f func())
	// Retired counts a shim that is retired. It is called under the account's lock.
	Retired func(why string)
}

// Account of the warm shims of one owner. Safe for concurrent use.
type Account[S any] struct {
	config Config[S]
	// ctx is the life of what the account does in the background; Close ends it.
	ctx  context.Context
	stop context.CancelFunc

	// mu guards all below, and the entries. See the package's doc for what is done under it.
	mu sync.Mutex
	// +checklocks:mu
	shelves map[string]*shelf[S] // by key
	// +checklocks:mu
	places int // that are taken
	// +checklocks:mu
	held uint64 // bytes that what is in the places holds
	// +checklocks:mu
	size uint64 // what the shim that was measured last holds: what the next one is taken to
	// +checklocks:mu
	closed bool
	// +checklocks:mu
	unable string // the key whose spare could not be started, of which that is logged; "" since one of it could
	// +checklocks:mu
	allowance allowance // what memory allows, as it was at memoryAt
	// +checklocks:mu
	memoryAt time.Time
	// +checklocks:mu
	watching bool // the memory is looked at from time to time
}

// shelf holds the shims of one key.
type shelf[S any] struct {
	open    []*Entry[S] // with room for a task; the one that was used last is at the end
	want    int         // how many idle ones are kept ahead, see Missed and expire
	filling bool        // spares are being started
}

// New makes an account. It does nothing in the background any more once ctx is done or Close was called.
func New[S any](ctx context.Context, c Config[S]) *Account[S] {
	if c.Machine == nil {
		c.Machine = readMachine
	}
	if c.Busy == nil {
		c.Busy = func() bool { return false }
	}
	a := &Account[S]{config: c, shelves: make(map[string]*shelf[S]), size: shimMemory}
	a.ctx, a.stop = context.WithCancel(ctx)
	return a
}

// Enter makes the entry of a shim. The account hands it out once it is put in.
func (a *Account[S]) Enter(shim S, key string, limits Limits) *Entry[S] {
	return &Entry[S]{Shim: shim, key: key, limits: limits}
}

// Take gives a shim to one task: a shared one that others have, else the idle one that was used last, so that those no
// create needs grow old; nil when there is none. idleFor is how long it had nothing to do.
func (a *Account[S]) Take(key string) (e *Entry[S], idleFor time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.shelves[key]
	if s == nil || len(s.open) == 0 || a.closed {
		return nil, 0
	}
	n := slices.IndexFunc(s.open, func(e *Entry[S]) bool { return e.tasks > 0 })
	if n < 0 {
		n = len(s.open) - 1
		idleFor = time.Since(s.open[n].since)
	}
	e = s.open[n]
	e.becomeLocked(Serving)
	a.vacateLocked(e)
	e.tasks++
	if e.worn {
		e.reused++
	}
	if !e.hasRoomLocked() {
		s.open = slices.Delete(s.open, n, n+1)
	}
	return e, idleFor
}

// GiveUp takes back a shim that was taken and cannot be used; it is ended unless others share it.
func (a *Account[S]) GiveUp(e *Entry[S]) {
	a.mu.Lock()
	e.tasks--
	a.retireLocked(e, WhyDistrusted)
	a.mu.Unlock()
	a.finish(e)
}

// Put takes in a shim that was just started, or found: with one task, or idle. One that is not wanted any more is ended
// before Put returns.
func (a *Account[S]) Put(e *Entry[S], tasks int) {
	a.lookAtMemory()
	a.measure(e)
	a.mu.Lock()
	e.tasks = tasks
	switch {
	case a.closed, e.retiredLocked(), tasks == 0 && !a.placeLocked(e):
		a.retireLocked(e, a.noRoomLocked(e))
	case tasks > 0:
		e.becomeLocked(Serving)
	}
	watch := a.shelveLocked(e)
	unwanted := e.retiredLocked() && tasks == 0
	a.mu.Unlock()
	if watch {
		a.config.Spawn(a.watch)
	}
	if unwanted {
		a.config.End(e.Shim)
	}
}

// Keep asks whether the shim may go on without the task that is about to leave it. No is final: it is given to no task
// any more, and ends with its last instance. After a yes, Back is due.
func (a *Account[S]) Keep(e *Entry[S]) bool {
	a.lookAtMemory()
	a.measure(e)
	a.mu.Lock()
	defer a.mu.Unlock()
	e.tasks--
	e.worn = true
	if a.closed || e.retiredLocked() || e.wornOutLocked() || e.tasks == 0 && !a.placeLocked(e) {
		a.retireLocked(e, a.noRoomLocked(e))
		return false
	}
	e.leaving++
	return true
}

// Back puts a shim that was kept on the shelf again, once nothing is left of the task that it was kept without. leave
// takes that task's instance out of the process and returns how many are still in it; it is called under the account's
// lock. Instances that the account knows nothing of may be among them, as the containers of a pod whose sandbox went
// first; their last one ends the process. done tells that the shim is retired and that nothing is in it: it is to be
// ended.
func (a *Account[S]) Back(e *Entry[S], leave func() (left int)) (done bool) {
	a.mu.Lock()
	e.leaving--
	left := leave()
	switch {
	case a.closed: // since Keep: Close has not found it among the idle ones
		a.retireLocked(e, WhyStop)
	case e.tasks == 0 && left > e.leaving:
		a.retireLocked(e, WhyDistrusted)
	}
	watch := a.shelveLocked(e)
	// Not by the count of its tasks, which those that left one in disorder are still among. A create that has taken it
	// and not yet joined it finds it closing and takes another.
	done = e.retiredLocked() && left == 0
	a.mu.Unlock()
	if watch {
		a.config.Spawn(a.watch)
	}
	return done
}

// Distrust retires a shim that did not do as it should. What it serves stays with it; an idle one is ended.
func (a *Account[S]) Distrust(e *Entry[S]) {
	a.mu.Lock()
	idle := e.state == Idle
	a.retireLocked(e, WhyDistrusted)
	a.mu.Unlock()
	if idle {
		a.finish(e)
	}
}

// Died retires a shim whose process is over for its owner. ending tells that the owner was ending it, and sees to what
// it leaves.
func (a *Account[S]) Died(e *Entry[S]) (ending bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.retireLocked(e, WhyDied)
	return e.state == Ending
}

// Ending notes that the owner ends the shim by itself, and sees to what it leaves.
func (a *Account[S]) Ending(e *Entry[S]) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.retireLocked(e, WhyDied)
	e.becomeLocked(Ending)
}

// Close ends all idle shims, at once, and gives none away any more.
func (a *Account[S]) Close() {
	a.stop()
	a.mu.Lock()
	a.closed = true
	idle := a.idleLocked()
	for _, e := range idle {
		a.retireLocked(e, WhyStop)
	}
	a.mu.Unlock()
	var wg sync.WaitGroup
	for _, e := range idle {
		wg.Go(func() { a.config.End(e.Shim) })
	}
	wg.Wait()
}

// finish ends a shim that is given to no task any more, in the background.
func (a *Account[S]) finish(e *Entry[S]) {
	a.config.Spawn(func() { a.config.End(e.Shim) })
}
