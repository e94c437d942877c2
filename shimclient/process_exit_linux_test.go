// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestAwaitExit: it returns once the child has exited, not before, and leaves it to be reaped with its status.
func TestAwaitExit(t *testing.T) {
	for name, prepare := range map[string]func(*testing.T){
		"in the poller": func(*testing.T) {}, "without pidfds": withoutPidfd,
	} {
		t.Run(name, func(t *testing.T) {
			prepare(t)
			cmd := exec.Command("sh", "-c", "read line; exit 7")
			stdin, err := cmd.StdinPipe()
			require.NoError(t, err)
			shimtest.Child(t, cmd)
			exited := make(chan bool, 1)
			go func() { exited <- awaitExit(cmd.Process.Pid) }()
			for range 100 {
				_, err := LookupProcess(cmd.Process.Pid)
				require.NoError(t, err)
				require.Empty(t, exited, "it still waits for its stdin")
			}
			require.NoError(t, stdin.Close())
			require.True(t, <-exited)
			require.NoError(t, unix.Kill(cmd.Process.Pid, 0), "nobody has reaped it")
			require.Error(t, cmd.Wait())
			require.Equal(t, 7, cmd.ProcessState.ExitCode())
		})
	}
}

// TestAwaitExitOfNone: what is no child, or has been reaped, is not waited for.
func TestAwaitExitOfNone(t *testing.T) {
	cmd := exec.Command("true")
	require.NoError(t, cmd.Run())
	require.False(t, awaitExit(cmd.Process.Pid))
}
