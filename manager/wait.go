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
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// waitPause is between two Wait calls to a shim that answers them with an error that says nothing about the process.
const waitPause = time.Second

// wait returns the exit of a task's init ("") or of an exec.
func (i *Instance) wait(ctx context.Context, execID string) (*runtime.Exit, error) {
	return i.waitFor(ctx, execID, func(ctx context.Context, l *shimproc.Link) (*bundle.Exit, error) {
		r, err := l.Task.Wait(ctx, &taskapi.WaitRequest{ID: i.id, ExecID: execID})
		if err != nil {
			return nil, err
		}
		return &bundle.Exit{Pid: i.ledger.Pid(execID), Status: r.ExitStatus, At: ledger.TimeOf(r.ExitedAt)}, nil
	})
}

// waitFor returns an exit that is on record, or that ask was answered with. It fails only for what the caller did (its
// context ended) and for what the shim says of the process (no such one). It outlasts stalls, lost connections,
// restores and the stop of the daemon: CRI takes a Wait that fails for exit 255 and kills the container.
func (i *Instance) waitFor(ctx context.Context, execID string, ask waiter) (*runtime.Exit, error) {
	var exit *runtime.Exit
	var verdict error
	err := await.Until(ctx, func() (await.Wake, bool) {
		// Taken before anything is looked at, so that no change is missed between the look and the sleep.
		st, changed := i.watch()
		l, moved := i.link()
		news := i.ledger.News()
		if e := i.ledger.Exit(execID); e != nil {
			exit = ledger.ToExit(e)
			return await.Wake{}, true
		}
		if st == life.Gone || st == life.Reaping || st == life.Dead && i.ledger.Exit("") != nil {
			// An exec that is not known: with init's exit those of all execs are known.
			verdict = life.ErrNone(i.kind, i.id)
			return await.Wake{}, true
		}
		if st != life.Dead && l != nil {
			var err error
			exit, err = i.askWait(ctx, l, execID, ask)
			switch {
			case exit != nil:
				return await.Wake{}, true
			case i.endsWait(ctx, err):
				verdict = err
				return await.Wake{}, true
			case !errors.Is(err, shimclient.ErrConnectionLost) && !errors.Is(err, errWoken):
				moved = await.After(waitPause)
			}
		}
		return await.Wake{changed, moved, news}, false
	})
	if err != nil {
		return nil, errors.Wrapf(err, "waiting for the exit of %s", i.id)
	}
	return exit, verdict
}

// waiter sends one Wait.
type waiter func(context.Context, *shimproc.Link) (*bundle.Exit, error)

// errWoken: a Wait call was ended since there is news.
var errWoken = errors.New("woken")

// askWait sends one Wait, which ends early when there is news. What it brings is recorded.
func (i *Instance) askWait(ctx context.Context, l *shimproc.Link, execID string, ask waiter) (*runtime.Exit, error) {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer i.ledger.OnWake(execID, cancel)()
	x := i.ledger.ExecOf(execID)
	if i.ledger.Exit(execID) != nil {
		return nil, errWoken
	}
	e, err := ask(wctx, l)
	if err != nil {
		if wctx.Err() != nil && ctx.Err() == nil {
			return nil, errWoken
		}
		return nil, err
	}
	if execID == "" {
		i.ledger.LearnExit(*e)
		return ledger.ToExit(i.ledger.Exit("")), nil
	}
	return ledger.ToExit(i.ledger.LearnExecExit(x, *e)), nil
}

// endsWait tells the errors that a Wait ends with: the caller's context, and the shim's word that there is no such
// process or method.
func (i *Instance) endsWait(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	if errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) || errdefs.IsInvalidArgument(err) {
		st, _ := i.watch()
		return st == life.Running && !i.processDead() && i.ledger.Exit("") == nil
	}
	return false
}
