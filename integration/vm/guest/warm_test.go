// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// process puts what the kernel tells of one under /proc.
func process(t *testing.T, top string, pid, parent int, cmdline, children string, size int) {
	dir := fmt.Sprintf("proc/%d/", pid)
	put(t, top, dir+"comm", "containerd-shim\n")
	put(t, top, dir+"cmdline", cmdline)
	put(t, top, dir+"stat", fmt.Sprintf("%d (containerd-shim) S %d 1 1 0\n", pid, parent))
	put(t, top, dir+fmt.Sprintf("task/%d/children", pid), children)
	put(t, top, dir+"smaps_rollup", fmt.Sprintf("Rss: 99 kB\nPss_Anon: %d kB\n", size))
}

func TestShimsByUse(t *testing.T) {
	top := emptyNode(t)
	const shim = "/usr/bin/containerd-shim-runc-v2\x00-namespace\x00vm\x00-id\x00_a\x00-address\x00x\x00"
	process(t, top, 10, 1, shim, "11 ", 9)          // serves a container
	process(t, top, 12, 10, shim, "", 7)            // its child, which is runc in a moment
	process(t, top, 13, 1, shim+"start\x00", "", 6) // starts a shim
	process(t, top, 14, 13, shim, "", 5)            // the one it has started
	process(t, top, 15, 1, shim, "", 4)
	serving, idle, err := shimsByUse(top)
	require.NoError(t, err)
	require.Equal(t, 1, serving)
	slices.Sort(idle)
	require.Equal(t, []int{4, 5}, idle)
}

func TestBeyond(t *testing.T) {
	for _, c := range []struct {
		workers, count, held int
	}{{-1, 3, 12}, {0, 3, 12}, {1, 2, 7}, {2, 1, 3}, {3, 0, 0}, {4, 0, 0}} {
		count, held := beyond([]int{4, 5, 3}, c.workers)
		require.Equal(t, []int{c.count, c.held}, []int{count, held}, c.workers)
	}
}
