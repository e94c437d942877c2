// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

const plenty = 1 << 40

// memoryYard is a yard whose runtime is kept warm, on a machine whose memory the test says.
func memoryYard(t *testing.T, now warm.Machine) *yard {
	t.Helper()
	y := coldPoolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 4, Reuse: 100})
	y.config.WarmMemory = MemoryRule{Share: 1, Available: 10, Pressure: 10}
	y.memoryIs(now)
	y.boot()
	return y
}

// memoryIs says what the next daemon reads of the machine's memory.
func (y *yard) memoryIs(m warm.Machine) { y.config.machine = func() warm.Machine { return m } }

// TestIdleShimsFollowMemory: together they hold no more than their share of it, as the processes themselves are
// measured.
func TestIdleShimsFollowMemory(t *testing.T) {
	y := memoryYard(t, warm.Machine{Total: plenty, Available: plenty})
	y.pooled("c0")
	one, err := y.warm("c0").p.Verified().OwnMemory()
	require.NoError(t, err)
	require.Greater(t, one, uint64(256<<10), "a process holds something")
	require.Less(t, one, uint64(256<<20))
	y.spares(1)
	y.remove("c0")

	y.memoryIs(warm.Machine{Total: 250 * one, Available: 250 * one}) // two and a half, as far as all hold the same
	y.restart()
	for n := range 3 {
		y.pooled(fmt.Sprintf("c%d", n))
	}
	for n := range 3 {
		y.remove(fmt.Sprintf("c%d", n))
	}
	y.until("what is above has ended", func() bool { return !y.filling() && len(y.daemons()) == len(y.idle()) })
	held := uint64(0)
	for _, w := range y.m.pool.account.Waiting() {
		n, err := w.p.Verified().OwnMemory()
		require.NoError(t, err)
		held += n
	}
	require.LessOrEqual(t, held, 3*one, "they may have grown a little since they were measured")
	require.NotEmpty(t, y.idle())
	require.LessOrEqual(t, len(y.idle()), 4)
}

// TestNoIdleShimsWhenMemoryIsShort: none is kept, and creates have shims of their own. When there is memory again all
// is as before.
func TestNoIdleShimsWhenMemoryIsShort(t *testing.T) {
	for name, short := range map[string]warm.Machine{
		"little is available": {Total: plenty, Available: plenty / 20},
		"processes wait":      {Total: plenty, Available: plenty, Pressure: 30},
	} {
		t.Run(name, func(t *testing.T) {
			y := memoryYard(t, short)
			y.pooled("c1")
			y.pooled("c2")
			y.remove("c1")
			y.remove("c2")
			y.noPool()

			y.memoryIs(warm.Machine{Total: plenty, Available: plenty})
			y.restart()
			y.pooled("c3")
			y.remove("c3")
			y.until("shims are kept again", func() bool { return !y.filling() && len(y.idle()) > 0 })
		})
	}
}
