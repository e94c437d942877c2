// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/ledger"
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
	i, x := e.task.i, e.task.i.ledger.ExecOf(e.id)
	if i.execWasDeleted(e.id) {
		return i.execStopped(e.id), nil
	}
	r, err := i.askState(ctx, e.id)
	if err != nil {
		if i.ledger.Exit(e.id) != nil && i.speaksForExec(err) {
			return i.execStopped(e.id), nil
		}
		return runtime.State{}, err
	}
	s := toState(r)
	if s.Status == runtime.StoppedStatus && ledger.HasTime(r.ExitedAt) {
		i.ledger.LearnExecExit(x, bundle.Exit{Status: r.ExitStatus, At: ledger.TimeOf(r.ExitedAt)})
	}
	if s.Status == runtime.StoppedStatus {
		s.ExitStatus, s.ExitedAt = i.ledger.StoppedAs(e.id, s.ExitStatus)
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
	i.ledger.ExecStarted(e.id, pid)
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

// Delete the exited process. The work is done without the caller's cancellation: a caller that leaves while the shim
// deletes gets the exit when it comes back, and so does one whose daemon died in between, if the exit is on record.
// Only one Delete of an exec is under way at a time; others wait for it. NotFound when the shim has no such exec and
// nothing is known of its exit.
func (e *Exec) Delete(ctx context.Context) (*runtime.Exit, error) {
	i := e.task.i
	if err := i.settled(ctx, shimproc.Forced); err != nil {
		return nil, err
	}
	unlock, err := i.deletes.Lock(ctx, e.id)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot delete exec %s", e.id)
	}
	return detach(ctx, i.m, func(dctx context.Context) (*runtime.Exit, error) {
		defer unlock()
		return i.deleteExec(dctx, ctx, e.id)
	})
}

// deleteExec deletes an exec. ctx has no cancellation; caller tells whether the caller still waits.
func (i *Instance) deleteExec(ctx, caller context.Context, id string) (*runtime.Exit, error) {
	x := i.ledger.ExecOf(id)
	exit, err := i.deleteExecInShim(ctx, id, x)
	switch {
	case errdefs.IsNotFound(err):
		i.ledger.ForgetExec(x)
		return nil, err
	case err != nil:
		return nil, err
	case caller.Err() == nil:
		i.ledger.ForgetExec(x)
	default:
		// No caller is there to be given the exit: it stays, recorded, for the retry.
	}
	return exit, nil
}

// deleteExecInShim sends Delete, unless an earlier one was answered. After a lost connection it is sent once more.
// NotFound with an exit on record is that exit: an earlier Delete was done and its answer was lost.
func (i *Instance) deleteExecInShim(ctx context.Context, id string, x ledger.Exec) (*runtime.Exit, error) {
	if i.execWasDeleted(id) {
		return ledger.ToExit(i.ledger.Exit(id)), nil
	}
	var resp *taskapi.DeleteResponse
	send := func(ctx context.Context, t *shimclient.Task) (err error) {
		resp, err = t.Delete(ctx, &taskapi.DeleteRequest{ID: i.id, ExecID: id})
		return err
	}
	err := i.call(ctx, shimproc.Forced, send)
	if errors.Is(err, shimclient.ErrConnectionLost) {
		err = i.call(ctx, shimproc.Forced, send)
	}
	if err == nil {
		failpoint.Here("exec-deleted")
		exit := bundle.Exit{Pid: resp.Pid, Status: resp.ExitStatus, At: ledger.TimeOf(resp.ExitedAt)}
		return ledger.ToExit(i.ledger.ExecDeleted(x, exit)), nil
	}
	if !errdefs.IsNotFound(err) || i.processDead() || !x.IsKnown() {
		return nil, err
	}
	if exit := i.execExitInFlight(id, x); exit != nil {
		return ledger.ToExit(exit), nil
	}
	return nil, err
}

// execExitInFlight is the exit of an exec that the shim no longer knows. Like init's it may still be on its way.
func (i *Instance) execExitInFlight(id string, x ledger.Exec) *bundle.Exit {
	if started := i.ledger.Pid(id) != 0; started && i.ledger.Exit(id) == nil {
		i.m.follower.HearAll(ledger.InFlight)
	}
	if e := i.ledger.Exit(id); e != nil {
		return i.ledger.ExecDeleted(x, *e)
	}
	return nil
}

// execWasDeleted tells whether the shim has deleted an exec that is still on record.
func (i *Instance) execWasDeleted(id string) bool {
	st, _ := i.watch()
	return st.IsListed() && i.ledger.ExecWasDeleted(id)
}

// knowsExec tells whether a living task has the exec.
func (i *Instance) knowsExec(id string) bool {
	st, _ := i.watch()
	return st.IsListed() && i.ledger.ExecOf(id).IsKnown()
}

// execStopped is the state of an exec whose exit is on record.
func (i *Instance) execStopped(id string) runtime.State {
	s := runtime.State{Status: runtime.StoppedStatus, Pid: i.ledger.Pid(id)}
	s.ExitStatus, s.ExitedAt = i.ledger.StoppedAs(id, 0)
	return s
}

// speaksForExec tells whether the record answers for an exec that has exited where asking the shim brought err: it is
// silent, or does not know the exec any more.
func (i *Instance) speaksForExec(err error) bool {
	if st, _ := i.watch(); !st.IsListed() || i.processDead() {
		return false
	}
	return errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || errdefs.IsNotFound(err)
}

// Exec adds a process, without starting it.
func (t *Task) Exec(ctx context.Context, id string, opts runtime.ExecOpts) (runtime.ExecProcess, error) {
	if err := identifiers.Validate(id); err != nil {
		return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "cannot use exec id %q: %v", id, err)
	}
	err := t.call(ctx, shimproc.Once, func(ctx context.Context, c *shimclient.Task) error {
		return c.Exec(ctx, &taskapi.ExecProcessRequest{
			ID: t.i.id, ExecID: id, Spec: opts.Spec,
			Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		})
	})
	if err != nil {
		return nil, err
	}
	t.i.ledger.ExecAdded(id)
	return &Exec{task: t, id: id}, nil
}

// Process returns an exec that exists. One that was added through us needs no asking, so that its Wait and Kill work
// while the shim stalls. One that is not on record is returned without an answer from a shim that is silent:
// containerd looks an exec up before it waits for it, and a Wait may not fail for a stall.
func (t *Task) Process(ctx context.Context, id string) (runtime.ExecProcess, error) {
	e := &Exec{task: t, id: id}
	if t.i.knowsExec(id) {
		return e, nil
	}
	_, err := e.State(ctx)
	if err == nil || ctx.Err() == nil && (errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err)) {
		return e, nil
	}
	return nil, err
}
