// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"math"
	"time"

	"github.com/containerd/log"
)

// MemoryRule says what idle shims may take of the machine's memory, each in percent; 0: that condition is not looked
// at.
type MemoryRule struct {
	// Share of the memory is how much idle shims may hold together.
	Share int
	// Available of the memory, by the kernel's estimate (MemAvailable), must be left for any idle shim to be kept.
	Available int
	// Pressure is the share of the last ten seconds, in which some process waited for memory (PSI, some avg10), from
	// which on none is kept.
	Pressure int
}

const (
	// memoryTime is for how long what was read of the machine's memory holds.
	memoryTime = time.Second
	// memoryPause is between looks at it while there are idle shims.
	memoryPause = 5 * time.Second
	// shimMemory is what a shim is taken to hold, in bytes, before any was measured.
	shimMemory = 8 << 20
)

// Machine is what is read of the machine's memory. Zero: it cannot be told.
type Machine struct {
	// Total and Available memory, in bytes.
	Total, Available uint64
	// Pressure is the share of time in which some process waited for memory, in percent.
	Pressure float64
}

// allowance is what the rule makes of the machine's memory.
type allowance struct {
	bytes uint64 // that idle shims may hold
	short bool   // of memory: none is to be kept
}

func (r MemoryRule) allow(m Machine) allowance {
	a := allowance{bytes: math.MaxUint64}
	if r.Share > 0 && m.Total > 0 {
		a.bytes = m.Total / 100 * uint64(r.Share)
	}
	a.short = r.Available > 0 && m.Total > 0 && m.Available < m.Total/100*uint64(r.Available) ||
		r.Pressure > 0 && m.Pressure >= float64(r.Pressure)
	return a
}

// lookAtMemory applies the rule to the memory as it is now, and says in the log what it has decided where that is news.
// Called without the lock.
func (a *Account[S]) lookAtMemory() {
	rule := a.config.Memory
	if rule == (MemoryRule{}) {
		return
	}
	a.mu.Lock()
	fresh := time.Since(a.memoryAt) < memoryTime
	a.mu.Unlock()
	if fresh {
		return
	}
	m := a.config.Machine()
	now := rule.allow(m)
	a.mu.Lock()
	before, first := a.allowance, a.memoryAt.IsZero()
	a.allowance, a.memoryAt = now, time.Now()
	a.mu.Unlock()
	logger := log.G(a.ctx).WithFields(log.Fields{"available": m.Available, "total": m.Total, "pressure": m.Pressure})
	switch {
	case now.short && !before.short:
		logger.Warn("the machine is short of memory: no idle shims are kept")
	case before.short && !now.short:
		logger.Info("the machine is not short of memory any more: idle shims are kept again")
	}
	if rule.Share > 0 && (first || now.bytes != before.bytes) {
		logger.Infof("idle shims may hold %d MiB, %d %% of the memory", now.bytes>>20, rule.Share)
	}
}

// fitsLocked tells whether one more idle shim of so many bytes is within the ceiling and what memory allows.
//
// +checklocks:a.mu
func (a *Account[S]) fitsLocked(bytes uint64) bool {
	if a.places >= a.config.Limit {
		return false
	}
	return a.config.Memory == (MemoryRule{}) || !a.allowance.short && a.held+bytes <= a.allowance.bytes
}

// beginWatchLocked tells whether the memory is to be watched from now on.
//
// +checklocks:a.mu
func (a *Account[S]) beginWatchLocked() bool {
	if a.watching || a.closed || a.config.Memory == (MemoryRule{}) {
		return false
	}
	a.watching = true
	return true
}

// watch looks at the memory from time to time, for as long as there are idle shims.
func (a *Account[S]) watch() {
	pause := time.NewTicker(memoryPause)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-a.ctx.Done():
			return
		}
		a.lookAtMemory()
		if !a.shrink() {
			return
		}
	}
}

// shrink ends the idle shims, those that are idle for longest first, that memory does not allow any more. False when
// none is left, which ends the watch.
func (a *Account[S]) shrink() bool {
	var unwanted []*Entry[S]
	a.mu.Lock()
	for e := a.oldestLocked(); e != nil && (a.allowance.short || a.held > a.allowance.bytes); e = a.oldestLocked() {
		a.retireLocked(e, WhyMemory)
		unwanted = append(unwanted, e)
	}
	a.watching = a.oldestLocked() != nil
	again := a.watching
	a.mu.Unlock()
	for _, e := range unwanted {
		a.finish(e)
	}
	return again
}

// oldestLocked is the shim that is idle for longest; nil when none is.
//
// +checklocks:a.mu
func (a *Account[S]) oldestLocked() (oldest *Entry[S]) {
	for _, e := range a.idleLocked() {
		if oldest == nil || e.since.Before(oldest.since) {
			oldest = e
		}
	}
	return oldest
}

// measure reads how much memory the shim holds alone. Called without the lock.
func (a *Account[S]) measure(e *Entry[S]) {
	if a.config.Memory == (MemoryRule{}) {
		return
	}
	held, err := a.config.Held(e.Shim)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		held = a.size
	}
	e.size, a.size = held, held
}
