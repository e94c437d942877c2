// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// Exec is a further process in a task. Safe for concurrent use.
type Exec struct {
	task *Task
	id   string
}

var _ runtime.ExecProcess = (*Exec)(nil)

// ID of the exec.
func (e *Exec) ID() string { return e.id }

// State of the exec.
func (e *Exec) State(ctx context.Context) (runtime.State, error) {
	x := e.task.i.execOf(e.id)
	r, err := e.task.i.askState(ctx, e.id)
	if err != nil {
		return runtime.State{}, err
	}
	s := toState(r)
	if s.Status == runtime.StoppedStatus && r.ExitedAt.IsValid() && r.ExitedAt.Seconds > 0 {
		e.task.i.learnExecExit(e.id, x, bundle.Exit{Status: r.ExitStatus, At: timeOf(r.ExitedAt)})
	}
	if exit := e.task.i.exit(e.id); exit != nil && s.Status == runtime.StoppedStatus {
		s.ExitStatus, s.ExitedAt = exit.Status, exit.At
	}
	return s, nil
}

// Start the process.
func (e *Exec) Start(ctx context.Context) error {
	i := e.task.i
	if err := i.settled(ctx, once); err != nil {
		return err
	}
	pid, err := i.sendStart(ctx, e.id)
	if err != nil {
		return err
	}
	i.execStarted(e.id, pid)
	return nil
}

// Kill sends a signal to the process. "All" has no meaning for an exec.
func (e *Exec) Kill(ctx context.Context, signal uint32, _ bool) error {
	return e.task.call(ctx, forced, func(ctx context.Context, c *shimclient.Task) error {
		return c.Kill(ctx, &taskapi.KillRequest{ID: e.task.i.id, ExecID: e.id, Signal: signal})
	})
}

// ResizePty sets the size of the terminal.
func (e *Exec) ResizePty(ctx context.Context, size runtime.ConsoleSize) error {
	return e.task.resize(ctx, e.id, size)
}

// CloseIO closes stdin.
func (e *Exec) CloseIO(ctx context.Context) error { return e.task.closeIO(ctx, e.id) }

// Wait for the exit.
func (e *Exec) Wait(ctx context.Context) (*runtime.Exit, error) { return e.task.i.wait(ctx, e.id) }

// Delete the exited process.
func (e *Exec) Delete(ctx context.Context) (*runtime.Exit, error) {
	i := e.task.i
	var r *taskapi.DeleteResponse
	err := e.task.call(ctx, forced, func(ctx context.Context, c *shimclient.Task) (err error) {
		r, err = c.Delete(ctx, &taskapi.DeleteRequest{ID: i.id, ExecID: e.id})
		return err
	})
	if err != nil {
		return nil, err
	}
	i.execDeleted(e.id)
	return &runtime.Exit{Pid: r.Pid, Status: r.ExitStatus, Timestamp: timeOf(r.ExitedAt)}, nil
}
