// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func TestMemoryRule(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		rule   MemoryRule
		memory machineMemory
		want   allowance
	}{
		"no rule":                 {MemoryRule{}, machineMemory{gib, 0, 100}, allowance{math.MaxUint64, false}},
		"nothing is known":        {MemoryRule{1, 10, 10}, machineMemory{}, allowance{math.MaxUint64, false}},
		"share":                   {MemoryRule{Share: 1}, machineMemory{100 * gib, 0, 100}, allowance{gib, false}},
		"enough is available":     {MemoryRule{Available: 10}, machineMemory{100 * gib, 10 * gib, 0}, allowance{math.MaxUint64, false}},
		"less than is to be":      {MemoryRule{Available: 10}, machineMemory{100 * gib, 10*gib - 1, 0}, allowance{math.MaxUint64, true}},
		"some wait":               {MemoryRule{Pressure: 10}, machineMemory{gib, 0, 9.99}, allowance{math.MaxUint64, false}},
		"too many wait":           {MemoryRule{Pressure: 10}, machineMemory{gib, 0, 10}, allowance{math.MaxUint64, true}},
		"short and share":         {MemoryRule{1, 10, 10}, machineMemory{100 * gib, gib, 0}, allowance{gib, true}},
		"pressure without memory": {MemoryRule{1, 10, 10}, machineMemory{pressure: 50}, allowance{math.MaxUint64, true}},
	} {
		require.Equal(t, c.want, c.rule.allow(c.memory), name)
	}
}

func TestParseMachineMemory(t *testing.T) {
	const info = "MemTotal:       24683656 kB\nMemFree:        14081296 kB\nMemAvailable:   22642776 kB\nHugePages_Total:       0\n"
	const pressure = "some avg10=12.50 avg60=0.02 avg300=0.00 total=40457\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=1525\n"
	require.Equal(t, machineMemory{24683656 << 10, 22642776 << 10, 12.5}, parseMachineMemory([]byte(info), []byte(pressure)))
	for _, damaged := range []string{"", "MemTotal: kB", "MemTotal: -1 kB", "MemTotal: 99999999999999999999 kB", "some avg10=much"} {
		require.Zero(t, parseMachineMemory([]byte(damaged), []byte(damaged)), damaged)
	}
	require.NotZero(t, readMachineMemory().total)
	require.NotZero(t, readMachineMemory().available)
}

// memoryYard is a poolYard on a machine whose memory the test says.
func memoryYard(t *testing.T, now machineMemory) (*yard, func(machineMemory)) {
	y := coldPoolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 4, Reuse: 100})
	y.config.WarmMemory = MemoryRule{Share: 1, Available: 10, Pressure: 10}
	y.boot()
	var memory atomic.Pointer[machineMemory]
	memory.Store(&now)
	y.m.pool.readMemory = func() machineMemory { return *memory.Load() }
	return y, func(m machineMemory) {
		memory.Store(&m)
		y.m.pool.mu.Lock()
		y.m.pool.memoryAt = time.Time{}.Add(1) // it is read again once it is old
		y.m.pool.mu.Unlock()
	}
}

const plenty = 1 << 40

// TestIdleShimsFollowMemory: together they hold no more than their share of it.
func TestIdleShimsFollowMemory(t *testing.T) {
	y, set := memoryYard(t, machineMemory{total: plenty, available: plenty})
	for n := range 3 {
		y.pooled(fmt.Sprintf("c%d", n))
	}
	y.until("a spare was started", func() bool { return !y.filling() && len(y.idle()) > 0 })
	w := y.warm("c0")
	y.m.pool.measure(w)
	y.m.pool.mu.Lock()
	one := w.size
	y.m.pool.mu.Unlock()
	require.Greater(t, one, uint64(256<<10), "a process holds something")
	require.Less(t, one, uint64(256<<20))

	set(machineMemory{total: 250 * one, available: 250 * one}) // two and a half, as far as all hold the same
	for n := range 3 {
		y.remove(fmt.Sprintf("c%d", n))
	}
	y.until("what is above has ended", func() bool {
		y.m.pool.lookAtMemory()
		y.m.pool.shrink()
		return !y.filling() && len(y.daemons()) == len(y.idle())
	})
	y.m.pool.mu.Lock()
	held := y.m.pool.held
	y.m.pool.mu.Unlock()
	require.LessOrEqual(t, held, 2*one+one/2)
	require.NotEmpty(t, y.idle())
	require.LessOrEqual(t, len(y.idle()), 4)
}

// TestNoIdleShimsWhenMemoryIsShort: those that are there end, the one that served longest ago first, none is kept, and creates have shims of
// their own. When there is memory again all is as before.
func TestNoIdleShimsWhenMemoryIsShort(t *testing.T) {
	for name, short := range map[string]machineMemory{
		"little is available": {total: plenty, available: plenty / 20},
		"processes wait":      {total: plenty, available: plenty, pressure: 30},
	} {
		t.Run(name, func(t *testing.T) {
			y, set := memoryYard(t, machineMemory{total: plenty, available: plenty})
			y.pooled("c1")
			y.spares(1)
			y.m.pool.mu.Lock()
			require.True(t, y.m.pool.watching)
			require.NotZero(t, y.m.pool.held)
			y.m.pool.mu.Unlock()
			set(short)
			y.m.pool.lookAtMemory()
			require.False(t, y.m.pool.shrink(), "the watch ends with the last")
			require.Empty(t, y.idle())
			y.pooled("c2")
			y.remove("c1")
			y.remove("c2")
			y.noPool()
			y.m.pool.mu.Lock()
			require.Zero(t, y.m.pool.held)
			require.Zero(t, y.m.pool.idle)
			y.m.pool.mu.Unlock()

			set(machineMemory{total: plenty, available: plenty})
			y.pooled("c3")
			y.remove("c3")
			y.until("shims are kept again", func() bool { return !y.filling() && len(y.idle()) > 0 })
		})
	}
}
