// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var rule = MemoryRule{Share: 1, Available: 10, Pressure: 10}

func TestMemoryRule(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		rule   MemoryRule
		memory Machine
		want   allowance
	}{
		"no rule":          {MemoryRule{}, Machine{gib, 0, 100}, allowance{math.MaxUint64, false}},
		"nothing is known": {MemoryRule{1, 10, 10}, Machine{}, allowance{math.MaxUint64, false}},
		"share":            {MemoryRule{Share: 1}, Machine{100 * gib, 0, 100}, allowance{gib, false}},
		"enough is available": {MemoryRule{Available: 10}, Machine{100 * gib, 10 * gib, 0},
			allowance{math.MaxUint64, false}},
		"less than is to be": {MemoryRule{Available: 10}, Machine{100 * gib, 10*gib - 1, 0},
			allowance{math.MaxUint64, true}},
		"some wait":               {MemoryRule{Pressure: 10}, Machine{gib, 0, 9.99}, allowance{math.MaxUint64, false}},
		"too many wait":           {MemoryRule{Pressure: 10}, Machine{gib, 0, 10}, allowance{math.MaxUint64, true}},
		"short and share":         {MemoryRule{1, 10, 10}, Machine{100 * gib, gib, 0}, allowance{gib, true}},
		"pressure without memory": {MemoryRule{1, 10, 10}, Machine{Pressure: 50}, allowance{math.MaxUint64, true}},
	} {
		require.Equal(t, c.want, c.rule.allow(c.memory), name)
	}
}

// memoryIs says how much memory the machine has from now on, and lets so much time pass that it is read again.
func (o *owner) memoryIs(m Machine) {
	o.mu.Lock()
	o.machine = m
	o.mu.Unlock()
	time.Sleep(memoryPause)
}

// TestIdleShimsFollowMemory: together they hold no more than their share of it, and those that are idle for longest end
// first.
func TestIdleShimsFollowMemory(t *testing.T) {
	inBubble(t, Config[string]{Memory: rule}, func(o *owner) {
		o.holds = map[string]uint64{"a": 10 * mib, "b": 20 * mib, "c": 30 * mib}
		o.idle("k", "a", "b")
		o.idle("other", "c")
		require.Equal(o, uint64(60*mib), o.holding())
		o.memoryIs(Machine{Total: 5500 * mib, Available: 5500 * mib}) // 55 MiB
		o.waits("b", "c")
		require.Equal(o, uint64(50*mib), o.holding())
		ended, why := o.asked()
		require.Equal(o, []string{"a"}, ended)
		require.Equal(o, []string{WhyMemory}, why)

		// One that cannot be measured is taken to hold what the one before it does.
		o.idle("k", "unknown")
		ended, why = o.asked()
		require.Equal(o, []string{"unknown"}, ended)
		require.Equal(o, []string{WhyMemory}, why)
	})
}

// TestNoIdleShimsWhenMemoryIsShort: those that are there end, none is kept and none is started. When there is memory
// again all is as before.
func TestNoIdleShimsWhenMemoryIsShort(t *testing.T) {
	for name, short := range map[string]Machine{
		"little is available": {Total: plenty, Available: plenty / 20},
		"processes wait":      {Total: plenty, Available: plenty, Pressure: 30},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config[string]{Memory: rule}, func(o *owner) {
				serving := o.miss("k")
				o.waits("spare1")
				require.True(o, o.isWatching())
				o.memoryIs(short)
				o.waits()
				require.False(o, o.isWatching(), "the watch ends with the last")
				require.Zero(o, o.holding())
				o.miss("k")
				require.Equal(o, 1, o.started)
				require.False(o, o.Keep(serving))
				ended, why := o.asked()
				require.Equal(o, []string{"spare1"}, ended)
				require.Equal(o, []string{WhyMemory, WhyMemory}, why)

				o.memoryIs(Machine{Total: plenty, Available: plenty})
				o.miss("k")
				o.waits("spare2", "spare3")
				require.True(o, o.isWatching())
			})
		})
	}
}

// TestMemoryIsReadOnceASecond at most.
func TestMemoryIsReadOnceASecond(t *testing.T) {
	reads := 0
	inBubble(t, Config[string]{Memory: rule}, func(o *owner) {
		o.config.Machine = func() Machine { reads++; return Machine{Total: plenty, Available: plenty} }
		for range 4 {
			o.lookAtMemory()
			time.Sleep(memoryTime / 2)
		}
		require.Equal(o, 2, reads)
	})
}
