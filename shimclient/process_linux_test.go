// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func sleeper(t testing.TB) *exec.Cmd { return shimtest.Child(t, exec.Command("sleep", "1000")) }

func withToken(cmd *exec.Cmd, token string) *exec.Cmd {
	cmd.Env = append(os.Environ(), TokenEnv+"="+token)
	return cmd
}

// withoutPidfd makes the kernel look as if it had none.
func withoutPidfd(t *testing.T) {
	pidfdOpen = func(int, int) (int, error) { return -1, unix.ENOSYS }
	t.Cleanup(func() { pidfdOpen = unix.PidfdOpen })
}

func TestParseStat(t *testing.T) {
	const rest = "1 7 7 0 -1 4194304 1 0 0 0 5 6 0 0 20 0 %d 0 4242 1 2 3"
	tail := func(threads int) string { return fmt.Sprintf(rest, threads) }
	for in, want := range map[string]procStat{
		"7 (sleep) S " + tail(1): {state: 'S', parent: 1, session: 7, threads: 1, start: 4242, ticks: 11,
			pages: 2},
		"7 (a b) c) R " + tail(3): {state: 'R', parent: 1, session: 7, threads: 3, start: 4242, ticks: 11,
			pages: 2},
		"7 (x) S 1 2 3 (\n) Z " + tail(2): {state: 'Z', parent: 1, session: 7, threads: 2, start: 4242, ticks: 11,
			pages: 2},
		"7 ()) D " + tail(1) + " 4 5 6 7 8": {state: 'D', parent: 1, session: 7, threads: 1, start: 4242, ticks: 11,
			pages: 2},
	} {
		got, ok := parseStat([]byte(in))
		require.True(t, ok, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "7 sleep S 1", "7 (sleep", "7 (sleep)", "7 (sleep) S 1 2 3",
		"7 (sleep) S " + rest} {
		_, ok := parseStat([]byte(in))
		require.False(t, ok, in)
	}
	require.True(t, procStat{state: 'Z', threads: 1}.dead())
	require.False(t, procStat{state: 'Z', threads: 2}.dead(), "only the leader has ended")
}

// An exec that is not done shows in fields 23 (size), 26 (start of the code) and 51 (end of the environment), an exit
// in field 9 (flags).
func TestUnclearProcess(t *testing.T) {
	line := func(state, flags, size, code, envEnd string) []byte {
		f := strings.Fields(strings.Repeat("0 ", 50))
		f[0], f[1], f[2], f[9-1], f[20-1], f[23-1], f[26-1] = "7", "(x)", state, flags, "1", size, code
		return []byte(strings.Join(append(f, envEnd, "0\n"), " "))
	}
	for want, lines := range map[bool][][]byte{
		true: {
			line("R", "0", "4096", "0", "0"), line("R", "0", "4096", "94000", "0"), line("R", "4194308", "0", "0", "0"),
		},
		false: {
			line("R", "4194304", "4096", "94000", "94001"), line("I", "2097152", "0", "0", "0"),
			line("S", "0", "4096", "1", "0"), line("Z", "4194308", "0", "0", "0"),
		},
	} {
		for _, l := range lines {
			st, ok := parseStat(l)
			require.True(t, ok)
			require.Equal(t, want, st.unclear, "%s", l)
		}
	}
	bare := exec.Command("sleep", "1000")
	bare.Env = []string{}
	for _, pid := range []int{os.Getpid(), 1, 2, shimtest.Child(t, bare).Process.Pid} {
		eventually(t, func() bool { st, err := readStat(pid); return err != nil || !st.unclear }, "process %d", pid)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (a b) c) R 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3"))
	f.Fuzz(func(_ *testing.T, data []byte) { parseStat(data) })
}

func TestProcessOfStrangeName(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	link := filepath.Join(t.TempDir(), "a) R 1 (b c")
	require.NoError(t, os.Symlink(sleep, link))
	cmd := shimtest.Child(t, exec.Command(link, "1000"))
	id, err := LookupProcess(cmd.Process.Pid)
	require.NoError(t, err)
	require.True(t, id.Alive())
	require.NotZero(t, id.StartTime)
}

func TestProcessLifeAndDeath(t *testing.T) {
	cmd := sleeper(t)
	id, err := LookupProcess(cmd.Process.Pid)
	require.NoError(t, err)
	require.True(t, id.Alive())

	waited := make(chan error, 1)
	go func() { waited <- id.Wait(t.Context()) }()
	require.NoError(t, id.Signal(syscall.SIGSTOP))
	require.True(t, id.Alive())
	select {
	case err := <-waited:
		require.Fail(t, "Wait returned for a stopped process", "%v", err)
	default:
	}
	require.NoError(t, id.Signal(syscall.SIGKILL))
	require.NoError(t, <-waited)

	// It is a zombie: nobody has reaped it.
	require.False(t, id.Alive())
	_, err = LookupProcess(id.Pid)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	require.NoError(t, id.Wait(t.Context()))

	require.Error(t, cmd.Wait())
	require.False(t, id.Alive())
	require.NoError(t, id.Wait(t.Context()))
	require.True(t, errdefs.IsNotFound(id.Signal(syscall.SIGKILL)))
}

// The pid is alive, and is another process's than the one that was known.
func TestProcessWithReusedPid(t *testing.T) {
	for _, pidfd := range []bool{true, false} {
		t.Run(fmt.Sprintf("pidfd=%v", pidfd), func(t *testing.T) {
			if !pidfd {
				withoutPidfd(t)
			}
			now, err := LookupProcess(sleeper(t).Process.Pid)
			require.NoError(t, err)
			before := ProcessID{Pid: now.Pid, StartTime: now.StartTime - 1}
			require.False(t, before.Alive())
			require.True(t, errdefs.IsNotFound(before.Signal(syscall.SIGKILL)))
			require.NoError(t, before.Wait(t.Context()))
			require.True(t, now.Alive(), "another process was killed")
		})
	}
}

func TestProcessZeroAndImpossible(t *testing.T) {
	for _, p := range []ProcessID{{}, {Pid: -1}, {Pid: 1 << 30, StartTime: 1}} {
		require.False(t, p.Alive())
		require.NoError(t, p.Wait(t.Context()))
		require.True(t, errdefs.IsNotFound(p.Signal(syscall.SIGKILL)))
	}
}

func TestProcessWaitIsCancelled(t *testing.T) {
	for _, pidfd := range []bool{true, false} {
		t.Run(fmt.Sprintf("pidfd=%v", pidfd), func(t *testing.T) {
			if !pidfd {
				withoutPidfd(t)
			}
			noLaunchLeaks(t)
			id, err := LookupProcess(sleeper(t).Process.Pid)
			require.NoError(t, err)
			for range 20 {
				ctx, cancel := context.WithCancel(t.Context())
				waited := make(chan error, 1)
				go func() { waited <- id.Wait(ctx) }()
				cancel()
				require.ErrorIs(t, <-waited, context.Canceled)
			}
			require.True(t, id.Alive())
		})
	}
}

func TestProcessWithoutPidfd(t *testing.T) {
	withoutPidfd(t)
	id, err := LookupProcess(sleeper(t).Process.Pid)
	require.NoError(t, err)
	waited := make(chan error, 1)
	go func() { waited <- id.Wait(t.Context()) }()
	require.NoError(t, id.Signal(syscall.SIGKILL))
	require.NoError(t, <-waited)
	require.False(t, id.Alive())
}

func TestBootID(t *testing.T) {
	require.Len(t, BootID(), 36)
	require.Equal(t, BootID(), BootID())
}

func TestNewToken(t *testing.T) {
	a, b := NewToken(), NewToken()
	require.NotEqual(t, a, b)
	require.NoError(t, checkToken(a))
}
