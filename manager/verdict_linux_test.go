// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestLookThatFailsIsNoProof: a look for the processes of a shim that could not be done, here for want of time, does not say that there
// are none.
func TestLookThatFailsIsNoProof(t *testing.T) {
	shimtest.CheckLeaks(t)
	m := memManager(t)
	p := newProcess(m, testEndpoint)
	t.Cleanup(p.end)
	require.NoError(t, p.join(tracedInstance(m, "first", false), origin{launched: true}))
	require.False(t, p.mayLive(time.Time{}))
	m.cancel()
	require.True(t, p.mayLive(time.Time{}))
}
