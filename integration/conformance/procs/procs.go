// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package procs looks at processes and waits for conditions, for tests that run in a box.
package procs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Patience is how long a condition is waited for, Tick how often it is looked at.
const (
	Patience = time.Minute
	Tick     = 50 * time.Millisecond
)

// Eventually waits until the condition holds. The condition is evaluated by the test itself, and may fail it.
func Eventually(t testing.TB, within time.Duration, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !condition(); time.Sleep(Tick) {
		require.True(t, time.Now().Before(end), "it does not come to this within %v", within)
	}
}

// fields are those of /proc/PID/stat from the state on; none if there is no such process.
func fields(pid int) []string {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil
	}
	_, after, _ := strings.Cut(string(data), ") ")
	return strings.Fields(after)
}

// Alive tells whether the process has not ended. One that has may not have been reaped.
func Alive(pid int) bool {
	f := fields(pid)
	return len(f) > 0 && f[0] != "Z" && f[0] != "X"
}

// Gone waits until the process has ended.
func Gone(t testing.TB, pid int) {
	t.Helper()
	Eventually(t, Patience, func() bool { return !Alive(pid) })
}

// Parent is the process that has the process as its child: for the first process of a container, its shim.
func Parent(t testing.TB, pid int) int {
	t.Helper()
	f := fields(pid)
	require.Greater(t, len(f), 1, "process %d is gone", pid)
	n, err := strconv.Atoi(f[1])
	require.NoError(t, err)
	require.Greater(t, n, 1)
	return n
}

// Signal sends the signal to the process, which must be there.
func Signal(t testing.TB, pid int, sig unix.Signal) {
	t.Helper()
	require.NoError(t, unix.Kill(pid, sig))
}

// Trapped waits until a shell has its trap for the signal. A runtime written in Go, which is about to become the shell,
// catches nearly all signals.
func Trapped(t testing.TB, pid int, sig unix.Signal) {
	t.Helper()
	Eventually(t, Patience, func() bool {
		caught := caughtBy(pid)
		return caught&(1<<(sig-1)) != 0 && caught&(1<<(unix.SIGURG-1)) == 0
	})
}

// caughtBy is the mask of the signals that a process catches.
func caughtBy(pid int) (mask uint64) {
	data, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	_, after, _ := strings.Cut(string(data), "SigCgt:")
	_, _ = fmt.Sscanf(after, "%x", &mask) // a process that is gone catches none
	return mask
}
