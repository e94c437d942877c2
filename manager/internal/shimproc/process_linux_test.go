// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestLookThatFailsIsNoProof: a look for the processes of a shim that could not be done, here for want of time, does
// not say that there are none.
func TestLookThatFailsIsNoProof(t *testing.T) {
	r, stop := idle(t)
	p, _, err := r.Attach(newGuest("first", false), nowhere, Origin{Launched: true})
	require.NoError(t, err)
	require.Equal(t, gone, p.lookForTraces())
	stop()
	require.Equal(t, unseen, p.lookForTraces())
}

// TestLaunchAtTheAddressOfADeadProcess: a launch that is answered with the address of a process whose pid is gone has
// made a new one.
func TestLaunchAtTheAddressOfADeadProcess(t *testing.T) {
	cmd := shimtest.Child(t, exec.Command("sleep", "1000"))
	pid, err := shimclient.LookupProcess(cmd.Process.Pid)
	require.NoError(t, err)
	r, _ := idle(t)
	first, created, err := r.Attach(newGuest("c1", false), nowhere, Origin{Launched: true, Pid: pid})
	require.NoError(t, err)
	require.True(t, created)
	second, created, err := r.Attach(newGuest("c2", false), nowhere, Origin{Launched: true})
	require.NoError(t, err)
	require.False(t, created)
	require.Same(t, first, second, "it lives")

	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	third, created, err := r.Attach(newGuest("c3", false), nowhere, Origin{Launched: true})
	require.NoError(t, err)
	require.True(t, created)
	require.NotSame(t, first, third)
	require.Same(t, third, r.At(nowhere))
	first.End()
	require.Same(t, third, r.At(nowhere), "the end of the old one leaves the new one alone")
	third.End()
	require.Empty(t, r.All())
}
