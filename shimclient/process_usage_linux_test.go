// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func TestUsage(t *testing.T) {
	me, err := LookupProcess(os.Getpid())
	require.NoError(t, err)
	// Some CPU time that can be seen in ticks.
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
	}
	u, err := me.Usage()
	require.NoError(t, err)
	require.Contains(t, "RSD", u.State)
	require.Greater(t, u.RSS, uint64(1<<20))
	require.Less(t, u.RSS, uint64(8<<30))
	require.Positive(t, u.CPU)
	require.False(t, u.Deleted)

	_, err = ProcessID{Pid: me.Pid, StartTime: me.StartTime + 1}.Usage()
	require.True(t, errdefs.IsNotFound(err), "the pid is another's: %v", err)
}

func TestOwnMemory(t *testing.T) {
	me, err := LookupProcess(os.Getpid())
	require.NoError(t, err)
	before, err := me.OwnMemory()
	require.NoError(t, err)
	// Not from the heap, which would have it of what it has free.
	big, err := unix.Mmap(-1, 0, 64<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(big)) }()
	for i := 0; i < len(big); i += os.Getpagesize() {
		big[i] = 1
	}
	after, err := me.OwnMemory()
	require.NoError(t, err)
	require.Greater(t, after, before+32<<20)
	u, err := me.Usage()
	require.NoError(t, err)
	require.Less(t, after, u.RSS+1<<20, "what it shares is not counted")
	_, err = ProcessID{Pid: me.Pid, StartTime: me.StartTime + 1}.OwnMemory()
	require.True(t, errdefs.IsNotFound(err), "the pid is another's: %v", err)
}

func TestUsageOfADeletedBinary(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	data, err := os.ReadFile(sleep)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "sleep")
	require.NoError(t, os.WriteFile(path, data, 0o700))
	cmd := shimtest.Child(t, exec.Command(path, "60"))
	id, err := LookupProcess(cmd.Process.Pid)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	u, err := id.Usage()
	require.NoError(t, err)
	require.True(t, u.Deleted)
	caught, err := id.Catches(syscall.SIGUSR1)
	require.NoError(t, err)
	require.False(t, caught)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	_, err = id.Usage()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	_, err = id.Catches(syscall.SIGUSR1)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

func TestCatches(t *testing.T) {
	me, err := LookupProcess(os.Getpid())
	require.NoError(t, err)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGUSR2)
	t.Cleanup(func() { signal.Stop(ch) })
	caught, err := me.Catches(syscall.SIGUSR2)
	require.NoError(t, err)
	require.True(t, caught)
}
