// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
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

// State of the exec. What the shim does not say, or no longer knows since a Delete was done whose caller had left, is
// said from the record once the exit is there.
func (e *Exec) State(ctx context.Context) (runtime.State, error) {
	i, x := e.task.i, e.task.i.ledger.execOf(e.id)
	if i.execWasDeleted(e.id) {
		return i.execStopped(e.id), nil
	}
	r, err := i.askState(ctx, e.id)
	if err != nil {
		if i.ledger.exit(e.id) != nil && i.speaksForExec(err) {
			return i.execStopped(e.id), nil
		}
		return runtime.State{}, err
	}
	s := toState(r)
	if s.Status == runtime.StoppedStatus && hasTime(r.ExitedAt) {
		i.ledger.learnExecExit(e.id, x, bundle.Exit{Status: r.ExitStatus, At: timeOf(r.ExitedAt)})
	}
	if s.Status == runtime.StoppedStatus {
		s.ExitStatus, s.ExitedAt = i.stoppedAs(e.id, s.ExitStatus)
	}
	return s, nil
}

// Start the process.
func (e *Exec) Start(ctx context.Context) error {
	i := e.task.i
	if err := i.settled(ctx, shimproc.Once); err != nil {
		return err
	}
	pid, err := i.sendStart(ctx, e.id)
	if err != nil {
		return err
	}
	i.ledger.execStarted(e.id, pid)
	return nil
}

// Kill sends a signal to the process. "All" has no meaning for an exec.
func (e *Exec) Kill(ctx context.Context, signal uint32, _ bool) error {
	return e.task.call(ctx, shimproc.Forced, func(ctx context.Context, c *shimclient.Task) error {
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
