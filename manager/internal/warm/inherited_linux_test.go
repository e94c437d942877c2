// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"os"
	"os/signal"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestInheritedIsRead: whatever a child of the daemon would have otherwise makes another digest, and the same again
// once it is as before.
func TestInheritedIsRead(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: changes priorities and changes them back")
	}
	pid := os.Getpid()
	file := func(name, value string) func(t *testing.T) (undo func()) {
		return func(t *testing.T) func() {
			path := "/proc/self/" + name
			before, err := os.ReadFile(path)
			if os.IsNotExist(err) {
				t.Skipf("this kernel has no %s", path)
			}
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, []byte(value), 0))
			back := strings.TrimSpace(string(before))
			if name == "coredump_filter" {
				back = "0x" + back
			}
			return func() { require.NoError(t, os.WriteFile(path, []byte(back), 0)) }
		}
	}
	for name, change := range map[string]func(t *testing.T) (undo func()){
		"nice": func(t *testing.T) func() {
			raw, err := unix.Getpriority(unix.PRIO_PROCESS, pid) // 20 - nice
			require.NoError(t, err)
			require.NoError(t, unix.Setpriority(unix.PRIO_PROCESS, pid, 20-raw-1))
			return func() { require.NoError(t, unix.Setpriority(unix.PRIO_PROCESS, pid, 20-raw)) }
		},
		"scheduling policy": func(t *testing.T) func() {
			setPolicy(t, pid, unix.SCHED_BATCH)
			return func() { setPolicy(t, pid, unix.SCHED_NORMAL) }
		},
		"IO priority": func(t *testing.T) func() {
			const idle = 3 << 13
			before := ioPriority()
			setIOPriority(t, pid, idle)
			return func() { setIOPriority(t, pid, before) }
		},
		"core dump filter": file("coredump_filter", "0x1"),
		"OOM score":        file("oom_score_adj", "321"),
		"timer slack":      file("timerslack_ns", "123456"),
		"umask": func(*testing.T) func() {
			before := unix.Umask(0o027)
			return func() { unix.Umask(before) }
		},
		"limit": func(t *testing.T) func() {
			var before unix.Rlimit
			require.NoError(t, unix.Getrlimit(unix.RLIMIT_CORE, &before))
			require.NoError(t, unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 4096, Max: before.Max}))
			return func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_CORE, &before)) }
		},
		"ignored signal": func(*testing.T) func() {
			signal.Ignore(unix.SIGUSR1)
			return func() { // Reset would leave it ignored
				ch := make(chan os.Signal, 1)
				signal.Notify(ch, unix.SIGUSR1)
				signal.Stop(ch)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := readSurroundings()
			require.Equal(t, before, readSurroundings())
			undo := change(t)
			changed := readSurroundings()
			undo()
			require.NotEqual(t, before, changed)
			require.Equal(t, before, readSurroundings())
		})
	}
}

func setPolicy(t *testing.T, pid, policy int) {
	t.Helper()
	var param struct{ priority int32 }
	_, _, errno := unix.Syscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(pid), uintptr(policy),
		uintptr(unsafe.Pointer(&param)))
	require.Zero(t, errno, "%v", errno)
}

func setIOPriority(t *testing.T, pid, value int) {
	t.Helper()
	_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, 1, uintptr(pid), uintptr(value))
	require.Zero(t, errno, "%v", errno)
}

func TestStatFields(t *testing.T) {
	for stat, want := range map[string][]string{
		"7 (a name) with) S 1 2 3": {"S", "2", ""},
		"7 (x)":                    {"", "", ""},
		"":                         {"", "", ""},
	} {
		var got []string
		for _, f := range statFields([]byte(stat), []int{3, 5, 40}) {
			got = append(got, string(f))
		}
		require.Equal(t, want, got, stat)
	}
}
