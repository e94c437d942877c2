// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"math"
	"time"

	"github.com/containerd/log"
)

// MemoryRule says what idle shims may take of the machine's memory, each in percent; 0: that condition is not looked at.
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

// machineMemory is what is read of the machine's memory: bytes, and percent. Zero: it cannot be told.
type machineMemory struct {
	total, available uint64
	pressure         float64
}

// allowance is what the rule makes of the machine's memory.
type allowance struct {
	bytes uint64 // that idle shims may hold
	short bool   // of memory: none is to be kept
}

func (r MemoryRule) allow(m machineMemory) allowance {
	a := allowance{bytes: math.MaxUint64}
	if r.Share > 0 && m.total > 0 {
		a.bytes = m.total / 100 * uint64(r.Share)
	}
	a.short = r.Available > 0 && m.total > 0 && m.available < m.total/100*uint64(r.Available) ||
		r.Pressure > 0 && m.pressure >= float64(r.Pressure)
	return a
}

// lookAtMemory applies the rule to the memory as it is now, and says in the log what it has decided where that is news.
// Called without the lock.
func (o *pool) lookAtMemory() {
	rule := o.m.config.WarmMemory
	if rule == (MemoryRule{}) {
		return
	}
	o.mu.Lock()
	fresh := time.Since(o.memoryAt) < memoryTime
	o.mu.Unlock()
	if fresh {
		return
	}
	m := o.readMemory()
	now := rule.allow(m)
	o.mu.Lock()
	before, first := o.allowed, o.memoryAt.IsZero()
	o.allowed, o.memoryAt = now, time.Now()
	o.mu.Unlock()
	logger := log.G(o.m.ctx).WithFields(log.Fields{"available": m.available, "total": m.total, "pressure": m.pressure})
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
func (o *pool) fitsLocked(bytes uint64) bool {
	if o.idle >= o.m.config.WarmLimit {
		return false
	}
	return o.m.config.WarmMemory == (MemoryRule{}) || !o.allowed.short && o.held+bytes <= o.allowed.bytes
}

// watchLocked begins to look at the memory from time to time, for as long as there are idle shims.
func (o *pool) watchLocked() {
	if o.watching || o.closed || o.m.config.WarmMemory == (MemoryRule{}) {
		return
	}
	o.watching = true
	o.m.spawn(func() {
		for o.m.sleep(memoryPause) {
			o.lookAtMemory()
			if !o.shrink() {
				return
			}
		}
	})
}

// shrink ends the idle shims, those that are idle for longest first, that memory does not allow any more. False when
// none is left, which ends the watch.
func (o *pool) shrink() bool {
	var unwanted []*warmShim
	o.mu.Lock()
	for w := o.oldestLocked(); w != nil && (o.allowed.short || o.held > o.allowed.bytes); w = o.oldestLocked() {
		o.retireLocked(w, "memory")
		unwanted = append(unwanted, w)
	}
	o.watching = o.oldestLocked() != nil
	again := o.watching
	o.mu.Unlock()
	for _, w := range unwanted {
		o.finish(w)
	}
	return again
}

// oldestLocked is the shim that is idle for longest; nil when none is.
func (o *pool) oldestLocked() *warmShim {
	var oldest *warmShim
	for _, s := range o.shelves {
		for _, w := range s.open {
			if w.idle && (oldest == nil || w.since.Before(oldest.since)) {
				oldest = w
			}
		}
	}
	return oldest
}

// measure reads how much memory the shim holds alone. Called without the lock.
func (o *pool) measure(w *warmShim) {
	if o.m.config.WarmMemory == (MemoryRule{}) {
		return
	}
	held, err := w.p.verified().OwnMemory()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		held = o.size
	}
	w.size, o.size = held, held
}
