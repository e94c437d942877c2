// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// tracedInstance has a bundle and the trace of a launch.
func tracedInstance(m *ShimManager, id string, joined bool) *Instance {
	i := memInstance(m, id, running)
	i.bundle = &bundle.Bundle{Namespace: testNamespace, ID: id, Path: "/nowhere/" + id}
	i.ledger.rec = bundle.Record{Created: true, Joined: joined, Launch: &bundle.Launch{Token: "token-of-" + id}}
	return i
}

// TestTracesOfAProcess are those of the instance that started it, after that one has left too, and of the ones that are behind it now:
// a pod's shim, or a warm one, that serves thousands one after the other keeps nothing of each.
func TestTracesOfAProcess(t *testing.T) {
	shimtest.CheckLeaks(t)
	m := memManager(t)
	p := newProcess(m, testEndpoint)
	t.Cleanup(p.end)
	first, pause := tracedInstance(m, "first", false), tracedInstance(m, "pause", true)
	require.NoError(t, p.join(first, origin{launched: true}))
	require.NoError(t, p.join(pause, origin{}))
	for n := range 1000 {
		i := tracedInstance(m, fmt.Sprint("c", n), true)
		require.NoError(t, p.join(i, origin{}))
		if n%2 == 0 {
			require.False(t, p.leave(i))
		} else {
			require.Equal(t, 2, p.remove(i))
		}
	}
	require.False(t, p.leave(first))
	tokens, dirs := p.traces()
	require.ElementsMatch(t, []string{"token-of-first", "token-of-pause"}, tokens)
	require.ElementsMatch(t, []string{"/nowhere/first", "/nowhere/pause"}, dirs)

	require.True(t, p.leave(pause))
	p.stay(pause)
	tokens, dirs = p.traces()
	require.Contains(t, tokens, "token-of-pause", "it could not be shut down, and its last instance is behind it again")
	require.Contains(t, dirs, "/nowhere/pause")
}
