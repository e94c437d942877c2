// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// Delete the exited process. The work is done without the caller's cancellation: a caller that leaves while the shim
// deletes gets the exit when it comes back, and so does one whose daemon died in between, if the exit is on record.
// Only one Delete of an exec is under way at a time; others wait for it. NotFound when the shim has no such exec and
// nothing is known of its exit.
func (e *Exec) Delete(ctx context.Context) (*runtime.Exit, error) {
	i := e.task.i
	if err := i.settled(ctx, shimproc.Forced); err != nil {
		return nil, err
	}
	unlock, err := i.deletes.lock(ctx, e.id)
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
	x := i.ledger.execOf(id)
	exit, err := i.deleteExecInShim(ctx, id, x)
	switch {
	case errdefs.IsNotFound(err):
		i.ledger.execDeleted(id, x)
		return nil, err
	case err != nil:
		return nil, err
	case caller.Err() == nil:
		i.ledger.execDeleted(id, x)
	default:
		// Nobody is there to be given the exit: it stays, recorded, for the retry.
	}
	return exit, nil
}

// deleteExecInShim sends Delete, unless an earlier one was answered. After a lost connection it is sent once more.
// NotFound with an exit on record is that exit: an earlier Delete was done and its answer was lost.
func (i *Instance) deleteExecInShim(ctx context.Context, id string, x *bundle.ExecState) (*runtime.Exit, error) {
	if i.execWasDeleted(id) {
		return toExit(i.ledger.exit(id)), nil
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
		exit := &bundle.Exit{Pid: resp.Pid, Status: resp.ExitStatus, At: timeOf(resp.ExitedAt)}
		return toExit(i.ledger.onExecDeleted(id, x, exit)), nil
	}
	if !errdefs.IsNotFound(err) || i.processDead() || x == nil {
		return nil, err
	}
	if exit := i.execExitInFlight(id, x); exit != nil {
		return toExit(exit), nil
	}
	return nil, err
}

// execExitInFlight is the exit of an exec that the shim no longer knows. Like init's it may still be on its way.
func (i *Instance) execExitInFlight(id string, x *bundle.ExecState) *bundle.Exit {
	if started := i.pidOf(id) != 0; started && i.ledger.exit(id) == nil {
		i.m.awaitTold(inFlight)
	}
	if e := i.ledger.exit(id); e != nil {
		return i.ledger.onExecDeleted(id, x, e)
	}
	return nil
}

// execWasDeleted tells whether the shim has deleted an exec that is still on record.
func (i *Instance) execWasDeleted(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	x := i.ledger.execLocked(id)
	return i.state.listed() && x != nil && x.Deleted && x.Exit != nil
}

// execStopped is the state of an exec whose exit is on record.
func (i *Instance) execStopped(id string) runtime.State {
	s := runtime.State{Status: runtime.StoppedStatus, Pid: i.pidOf(id)}
	s.ExitStatus, s.ExitedAt = i.stoppedAs(id, 0)
	return s
}

// speaksForExec tells whether the record answers for an exec that has exited where asking the shim brought err: it is
// silent, or does not know the exec any more.
func (i *Instance) speaksForExec(err error) bool {
	if st, _ := i.watch(); !st.listed() || i.processDead() {
		return false
	}
	return errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || errdefs.IsNotFound(err)
}

// stoppedAs is how a stopped process is answered for: with its exit where that is known, else with the status that the
// shim says and the time at which it was first seen stopped.
func (i *Instance) stoppedAs(execID string, status uint32) (uint32, time.Time) {
	if e := i.ledger.exit(execID); e != nil {
		return e.Status, e.At
	}
	return status, i.ledger.firstSeenStopped(execID)
}
