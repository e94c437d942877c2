// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient"
)

// TestLookThatFailsIsNoProof: a look for the processes of a shim that could not be done, here for want of time, does not say that there
// are none.
func TestLookThatFailsIsNoProof(t *testing.T) {
	r, stop := idle(t)
	p, _, err := r.attach(newGuest("first", false), nowhere, origin{launched: true})
	require.NoError(t, err)
	require.False(t, p.mayLive(time.Time{}))
	stop()
	require.True(t, p.mayLive(time.Time{}))
}

// TestLaunchAtTheAddressOfADeadProcess: a launch that is answered with the address of a process whose pid is gone has
// made a new one.
func TestLaunchAtTheAddressOfADeadProcess(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	require.NoError(t, cmd.Start())
	pid, err := shimclient.LookupProcess(cmd.Process.Pid)
	require.NoError(t, err)
	r, _ := idle(t)
	first, created, err := r.attach(newGuest("c1", false), nowhere, origin{launched: true, pid: pid})
	require.NoError(t, err)
	require.True(t, created)
	second, created, err := r.attach(newGuest("c2", false), nowhere, origin{launched: true})
	require.NoError(t, err)
	require.False(t, created)
	require.Same(t, first, second, "it lives")

	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	third, created, err := r.attach(newGuest("c3", false), nowhere, origin{launched: true})
	require.NoError(t, err)
	require.True(t, created)
	require.NotSame(t, first, third)
	require.Same(t, third, r.at(nowhere))
	first.end()
	require.Same(t, third, r.at(nowhere), "the end of the old one leaves the new one alone")
	third.end()
	require.Empty(t, r.all())
}
