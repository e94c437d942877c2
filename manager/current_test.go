// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/shimyard/shimyard/bundle"
)

// runcTask is a connected task of a shim that is vouched for, whose State was asked once.
func runcTask(t *testing.T, s *memShim, m *ShimManager) *Task {
	t.Helper()
	i, p := memTask(t, m, "c1", ownPid())
	i.binary.Runtime = plugins.RuntimeRuncV2
	edit(i, func(r *bundle.Record) { r.Task.PidOwned = true })
	require.NoError(t, p.OnConnected(s.connect()))
	task := &Task{i: i}
	_, err := task.State(t.Context())
	require.NoError(t, err)
	return task
}

// listed is the one task's status in a list, and whether its shim was asked.
func listed(t *testing.T, s *memShim, m *ShimManager) (st runtime.Status, asked bool) {
	t.Helper()
	before := s.count("State")
	ctx := namespaces.WithNamespace(t.Context(), testNamespace)
	tasks, err := (&TaskManager{shims: m}).Tasks(ctx, false)
	require.NoError(t, err)
	require.Len(t, tasks, 1)
	state, err := tasks[0].State(ctx)
	require.NoError(t, err)
	return state.Status, s.count("State") > before
}

// TestListFromTheRecord: whose status is certain is not asked.
func TestListFromTheRecord(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*testing.T, *memShim, *Task)
		want   runtime.Status
		asked  bool
	}{
		"running": {func(*testing.T, *memShim, *Task) {}, runtime.RunningStatus, false},
		"paused": {func(t *testing.T, _ *memShim, task *Task) {
			require.NoError(t, task.Pause(t.Context()))
		}, runtime.PausedStatus, false},
		"exited": {func(_ *testing.T, _ *memShim, task *Task) {
			task.i.onExitEvent("", exitOf(ownPid(), 3))
		}, runtime.StoppedStatus, false},
		"a failed pause": {func(t *testing.T, s *memShim, task *Task) {
			s.fail("Pause", codes.Internal, "no mood")
			require.Error(t, task.Pause(t.Context()))
		}, runtime.RunningStatus, true},
		"another shim": {func(_ *testing.T, _ *memShim, task *Task) {
			task.i.binary.Runtime = "io.containerd.other.v1"
		}, runtime.RunningStatus, true},
		"created": {func(_ *testing.T, _ *memShim, task *Task) {
			edit(task.i, func(r *bundle.Record) { r.Task.Status = tasktypes.Status_CREATED.String() })
		}, runtime.RunningStatus, true},
		"init gone": {func(_ *testing.T, _ *memShim, task *Task) {
			edit(task.i, func(r *bundle.Record) { r.Task.PidStart++ })
		}, runtime.RunningStatus, true},
		"a pid that may not be its": {func(_ *testing.T, _ *memShim, task *Task) {
			edit(task.i, func(r *bundle.Record) { r.Task.PidOwned = false })
		}, runtime.RunningStatus, true},
		"being probed": {func(_ *testing.T, s *memShim, task *Task) {
			s.stall("Connect")
			task.i.proc.Suspect()
		}, runtime.RunningStatus, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, m := newMemShim(t), memManager(t)
				task := runcTask(t, s, m)
				c.change(t, s, task)
				st, asked := listed(t, s, m)
				require.Equal(t, c.want, st)
				require.Equal(t, c.asked, asked)
			})
		})
	}
}

// TestListWhileTheStatusChanges: while a Pause is under way, and after one whose answer nobody has seen, the shim is
// asked, until it has answered to a State that was sent after.
func TestListWhileTheStatusChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		task := runcTask(t, s, m)
		s.stall("Pause")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- task.Pause(ctx) }()
		synctest.Wait()
		for range 2 {
			_, asked := listed(t, s, m)
			require.True(t, asked)
		}
		cancel()
		require.Error(t, <-done)
		_, asked := listed(t, s, m)
		require.True(t, asked)
		_, asked = listed(t, s, m)
		require.False(t, asked)
		s.resume("Pause")
	})
}

// TestStateFromBeforeAPause, answered after it, tells nothing.
func TestStateFromBeforeAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		task := runcTask(t, s, m)
		s.stall("State")
		done := make(chan error)
		go func() {
			_, err := task.i.sendState(t.Context(), "")
			done <- err
		}()
		synctest.Wait()
		require.NoError(t, task.Pause(t.Context()))
		time.Sleep(time.Millisecond)
		s.resume("State")
		require.NoError(t, <-done)
		st, asked := listed(t, s, m)
		require.Equal(t, runtime.PausedStatus, st)
		require.False(t, asked)
	})
}

// TestStateThatWasJustAsked is answered from the record while nothing has changed since, and asked again after
// stateFresh: a client that polls must notice a shim that has fallen silent.
func TestStateThatWasJustAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		task := runcTask(t, s, m)
		state := func(want runtime.Status, asks int) {
			t.Helper()
			before := s.count("State")
			st, err := task.State(t.Context())
			require.NoError(t, err)
			require.Equal(t, want, st.Status)
			require.Equal(t, asks, s.count("State")-before)
		}
		time.Sleep(stateFresh - time.Millisecond)
		state(runtime.RunningStatus, 0)
		time.Sleep(time.Millisecond)
		state(runtime.RunningStatus, 1)
		require.NoError(t, task.Pause(t.Context()))
		state(runtime.PausedStatus, 0)
		s.fail("Kill", codes.Internal, "no mood")
		require.Error(t, task.Kill(t.Context(), 9, false))
		edit(task.i, func(r *bundle.Record) { r.Task.PidStart++ })
		state(runtime.RunningStatus, 1)
	})
}

// TestStateAfterStart is what the shim has said with its answer to Start, while init lives: containerd asks for it at
// once, with every start. It is asked for where init has exited already, where the Start has failed, and where another
// change of the status was under way beside it.
func TestStateAfterStart(t *testing.T) {
	for name, c := range map[string]struct {
		start func(*testing.T, *memShim, *Task)
		want  runtime.Status
		asked bool
	}{
		"running": {func(t *testing.T, _ *memShim, task *Task) {
			require.NoError(t, task.Start(t.Context()))
		}, runtime.RunningStatus, false},
		"exited at once": {func(t *testing.T, s *memShim, task *Task) {
			require.NoError(t, task.Start(t.Context()))
			edit(task.i, func(r *bundle.Record) { r.Task.PidStart++ })
			s.say("State", &taskapi.StateResponse{Status: tasktypes.Status_STOPPED, Pid: ownPid()})
		}, runtime.StoppedStatus, true},
		"exit told before": {func(t *testing.T, _ *memShim, task *Task) {
			require.NoError(t, task.Start(t.Context()))
			task.i.onExitEvent("", exitOf(ownPid(), 3))
		}, runtime.StoppedStatus, false},
		"failed": {func(t *testing.T, s *memShim, task *Task) {
			s.fail("Start", codes.Internal, "no mood")
			require.Error(t, task.Start(t.Context()))
			s.say("State", &taskapi.StateResponse{Status: tasktypes.Status_CREATED, Pid: ownPid()})
		}, runtime.CreatedStatus, true},
		"beside a pause": {func(t *testing.T, s *memShim, task *Task) {
			s.stall("Pause")
			paused := make(chan error)
			go func() { paused <- task.Pause(t.Context()) }()
			synctest.Wait()
			require.NoError(t, task.Start(t.Context()))
			time.Sleep(time.Millisecond)
			s.resume("Pause")
			require.NoError(t, <-paused)
		}, runtime.RunningStatus, true},
		"long ago": {func(t *testing.T, _ *memShim, task *Task) {
			require.NoError(t, task.Start(t.Context()))
			time.Sleep(stateFresh)
		}, runtime.RunningStatus, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, m := newMemShim(t), memManager(t)
				task := runcTask(t, s, m)
				edit(task.i, func(r *bundle.Record) { r.Task.Status = tasktypes.Status_CREATED.String() })
				time.Sleep(stateFresh)
				c.start(t, s, task)
				before := s.count("State")
				st, err := task.State(t.Context())
				require.NoError(t, err)
				require.Equal(t, c.want, st.Status)
				require.Equal(t, c.asked, s.count("State") > before)
			})
		})
	}
}
