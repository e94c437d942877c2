// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// child is a process that stands for a container's init.
func child(t *testing.T) *exec.Cmd {
	t.Helper()
	return shimtest.Child(t, exec.Command("sleep", "1000"))
}

// childTask is a task of a shim that is vouched for, whose init is a process, and whose State was asked once.
func childTask(t *testing.T, s *memShim, m *ShimManager, cmd *exec.Cmd) *Task {
	t.Helper()
	i, p := memTask(t, m, "c1", uint32(cmd.Process.Pid))
	i.binary.Runtime = plugins.RuntimeRuncV2
	edit(i, func(r *bundle.Record) { r.Task.PidOwned = true })
	require.NoError(t, p.OnConnected(s.connect()))
	s.say("State", &taskapi.StateResponse{Status: tasktypes.Status_RUNNING, Pid: uint32(cmd.Process.Pid)})
	task := &Task{i: i}
	_, err := task.State(t.Context())
	require.NoError(t, err)
	return task
}

// pidfds counts the descriptors of a child that this process has.
func pidfds(t *testing.T, cmd *exec.Cmd) (n int) {
	t.Helper()
	all, err := filepath.Glob("/proc/self/fdinfo/*")
	require.NoError(t, err)
	for _, path := range all {
		info, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(info), fmt.Sprintf("\nPid:\t%d\n", cmd.Process.Pid)) {
			n++
		}
	}
	return n
}

// end kills a child and returns when it has exited; it is left for its parent to wait for.
func end(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	require.NoError(t, cmd.Process.Kill())
	var info unix.Siginfo
	require.NoError(t, unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil))
}

// TestListAfterInitEnded: a list asks no shim and reads nothing of /proc while the containers run, and the first one
// after init has exited asks the shim, though nobody has told the daemon of the exit.
func TestListAfterInitEnded(t *testing.T) {
	s, m, cmd := newMemShim(t), memManager(t), child(t)
	childTask(t, s, m, cmd)
	for range 3 {
		st, asked := listed(t, s, m)
		require.Equal(t, runtime.RunningStatus, st)
		require.False(t, asked)
	}
	end(t, cmd)
	s.say("State", &taskapi.StateResponse{Status: tasktypes.Status_STOPPED, Pid: uint32(cmd.Process.Pid)})
	st, asked := listed(t, s, m)
	require.Equal(t, runtime.StoppedStatus, st)
	require.True(t, asked)
}

// TestInitIsLetGo: init is held by one descriptor from the first list on, and by none once its exit is known, once it
// is another process, or once nothing is left of the instance.
func TestInitIsLetGo(t *testing.T) {
	for name, over := range map[string]func(*testing.T, *memShim, *Task){
		"exited": func(_ *testing.T, _ *memShim, task *Task) { task.i.onExitEvent("", exitOf(task.i.ledger.Pid(""), 3)) },
		"gone":   func(_ *testing.T, _ *memShim, task *Task) { task.i.ledger.Seal() },
		"another pid": func(t *testing.T, s *memShim, task *Task) {
			pid := uint32(child(t).Process.Pid)
			edit(task.i, func(r *bundle.Record) { r.Task.Pid, r.Task.PidStart = pid, startOf(t, pid) })
			_, asked := listed(t, s, task.i.m)
			require.False(t, asked)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, m, cmd := newMemShim(t), memManager(t), child(t)
			task := childTask(t, s, m, cmd)
			t.Cleanup(task.i.ledger.Seal)
			before := pidfds(t, cmd)
			for range 2 {
				_, asked := listed(t, s, m)
				require.False(t, asked)
				require.Equal(t, before+1, pidfds(t, cmd))
			}
			over(t, s, task)
			require.Equal(t, before, pidfds(t, cmd))
			_, _ = listed(t, s, m)
			require.Equal(t, before, pidfds(t, cmd))
		})
	}
}

// TestStateHoldsNothing: who asks for one task, as containerd after a Start, leaves no descriptor with the daemon.
func TestStateHoldsNothing(t *testing.T) {
	s, m, cmd := newMemShim(t), memManager(t), child(t)
	task := childTask(t, s, m, cmd)
	before := pidfds(t, cmd)
	state, err := task.State(t.Context())
	require.NoError(t, err)
	require.Equal(t, runtime.RunningStatus, state.Status)
	require.Equal(t, 1, s.count("State"), "it was just asked")
	require.Equal(t, before, pidfds(t, cmd))
}
