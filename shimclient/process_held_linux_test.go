// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestHold: one that is held is alive until it has exited, whether it is waited for or not, and after it was let go as
// long as it would be by /proc.
func TestHold(t *testing.T) {
	for name, closed := range map[string]bool{"held": false, "let go": true} {
		t.Run(name, func(t *testing.T) {
			cmd := sleeper(t)
			id, err := LookupProcess(cmd.Process.Pid)
			require.NoError(t, err)
			h, err := id.Hold()
			require.NoError(t, err)
			defer h.Close()
			if closed {
				h.Close()
			}
			require.True(t, h.Is(id))
			require.True(t, h.Alive())
			require.NoError(t, unix.Kill(id.Pid, unix.SIGKILL))
			var info unix.Siginfo
			require.NoError(t, unix.Waitid(unix.P_PID, id.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil))
			require.False(t, h.Alive(), "a zombie")
			require.Error(t, cmd.Wait())
			require.False(t, h.Alive())
		})
	}
}

// TestHoldAnother: the pid alone is not the process.
func TestHoldAnother(t *testing.T) {
	id, err := LookupProcess(sleeper(t).Process.Pid)
	require.NoError(t, err)
	id.StartTime++
	_, err = id.Hold()
	require.True(t, errdefs.IsNotFound(err), err)
	require.False(t, (*Held)(nil).Is(id))
	(*Held)(nil).Close()
}

// TestHoldWithinLimits: descriptors are left for connections, and those of processes that are let go are used again.
func TestHoldWithinLimits(t *testing.T) {
	was, before := maxHeld, held.Load()
	defer func() { maxHeld = was }()
	require.Positive(t, was())
	maxHeld = func() int64 { return before + 1 }
	id, err := LookupProcess(syscall.Getpid())
	require.NoError(t, err)
	h, err := id.Hold()
	require.NoError(t, err)
	_, err = id.Hold()
	require.True(t, errdefs.IsResourceExhausted(err), err)
	h.Close()
	h.Close()
	require.Equal(t, before, held.Load())
	h, err = id.Hold()
	require.NoError(t, err)
	h.Close()
}

// TestHoldWithoutPidfd cannot be.
func TestHoldWithoutPidfd(t *testing.T) {
	withoutPidfd(t)
	id, err := LookupProcess(syscall.Getpid())
	require.NoError(t, err)
	_, err = id.Hold()
	require.Error(t, err)
	require.False(t, errdefs.IsNotFound(err), err)
}
