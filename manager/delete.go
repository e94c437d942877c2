// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/spans"
	"github.com/shimyard/shimyard/shimclient"
)

// delete removes the task. The work is done without the caller's cancellation: one who leaves while the shim deletes
// gets the exit that was recorded when he comes back.
func (i *Instance) delete(ctx context.Context) (*runtime.Exit, error) {
	leave, err := i.m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	mine, err := i.claimDelete(ctx)
	if err != nil {
		return nil, err
	}
	if !mine {
		if e := i.ledger.Exit(""); e != nil {
			return ledger.ToExit(e), nil // of the other's delete, that we waited for
		}
		return nil, life.ErrNone(i.kind, i.id)
	}
	begin := time.Now()
	ctx, end := i.startSpan(ctx, spans.Delete)
	exit, err := detach(ctx, i.m, func(dctx context.Context) (*runtime.Exit, error) { return i.runDelete(dctx, ctx) })
	end(err)
	if err == nil {
		metrics.Deleted(i.ledger.Passage().Runtime, time.Since(begin))
	}
	return exit, errors.Wrapf(err, "cannot delete task %s", i.id)
}

// claimDelete makes the caller the one who deletes, waiting for another delete or for the restore as long as ctx and
// the load timeout allow. Not mine: the other one has done it.
func (i *Instance) claimDelete(ctx context.Context) (mine bool, err error) {
	wctx, cancel := timeout.WithContext(ctx, shimproc.TimeoutLoad)
	defer cancel()
	var verdict error
	waited := false
	err = await.Until(ctx, func() (await.Wake, bool) {
		moved, force := i.moved(), i.isUnresponsive()
		before, changed := i.onDelete(force)
		switch {
		case before == life.Running, before == life.Restoring && force:
			mine = true
		case before == life.Deleting:
			waited = true // the other one has deadlines of its own
			return await.Wake{changed, moved}, false
		case before == life.Restoring && wctx.Err() == nil:
			i.m.urge()
			return await.Wake{changed, moved, wctx.Done()}, false
		case before == life.Restoring && ctx.Err() == nil:
			verdict = i.unavailable()
		case before == life.Restoring:
			return await.Wake{}, false // the caller has left
		case !waited:
			verdict = life.ErrNone(i.kind, i.id)
		}
		return await.Wake{}, true
	})
	if err != nil {
		return false, errors.Wrapf(err, "waiting to delete %s %s", i.kind, i.id)
	}
	return mine, verdict
}

// runDelete is the orderly way: Delete in the shim, record the exit, release the process, remove what is left. ctx has
// no cancellation; caller tells whether one still waits.
func (i *Instance) runDelete(ctx, caller context.Context) (*runtime.Exit, error) {
	i.ledger.AwaitSilence()
	i.tellOOMBeforeDelete()
	exit, derr := i.deleteInShim(ctx)
	if derr != nil && (!errdefs.IsNotFound(derr) || i.processDead()) {
		return i.deleteFailed(ctx, derr)
	}
	if caller.Err() != nil && exit != nil {
		// No caller is there to be given the exit: it stays, recorded, for the retry.
		i.takeDeleteBack()
		return nil, caller.Err()
	}
	p := i.process()
	lingering, err := i.releaseProcess(ctx, p, derr == nil)
	if err != nil {
		return i.deleteFailed(ctx, err)
	}
	if exit != nil && p != nil && p.IsOver() && i.ledger.Unspoken() {
		end := i.m.stayReachable(i)
		i.m.spawn(func() {
			defer end()
			i.tellLate()
		})
	}
	failpoint.Here("delete-released")
	i.activated()
	i.finishReleased(ctx, lingering, i.cleaningAfter(exit != nil))
	if exit == nil {
		return nil, derr
	}
	return ledger.ToExit(exit), nil
}

// deleteInShim sends Delete, unless an earlier attempt was answered. After a lost connection it is sent once more.
// NotFound with an exit on record is that exit; NotFound without one is returned as it is, for the caller to clean up
// and pass on.
func (i *Instance) deleteInShim(ctx context.Context) (*bundle.Exit, error) {
	if i.ledger.Fate().Deleted {
		return i.ledger.Exit(""), nil
	}
	var resp *taskapi.DeleteResponse
	send := func(ctx context.Context, t *shimclient.Task) (err error) {
		resp, err = t.Delete(ctx, &taskapi.DeleteRequest{ID: i.id})
		return err
	}
	dctx, cancel := i.deleteContext(ctx)
	defer cancel()
	err := i.call(dctx, shimproc.Forced, send)
	if errors.Is(err, shimclient.ErrConnectionLost) {
		err = i.call(dctx, shimproc.Forced, send)
	}
	if err != nil && errors.Is(context.Cause(dctx), errInitEnded) {
		err = errInitEnded
	}
	if i.unanswered(err) && i.endSilentShim(ctx) {
		return nil, shimproc.ErrDead
	}
	switch {
	case err == nil:
		failpoint.Here("delete-task")
		i.ledger.LearnExit(bundle.Exit{Pid: resp.Pid, Status: resp.ExitStatus, At: ledger.TimeOf(resp.ExitedAt)})
		i.ledger.MarkDeleted()
		failpoint.Here("delete-recorded")
		return i.ledger.Exit(""), nil
	case errdefs.IsNotFound(err) && !i.processDead():
		if e := i.exitInFlight(); e != nil {
			i.ledger.MarkDeleted()
			return e, nil
		}
	}
	return nil, err
}

// exitInFlight is the exit on record. The shim tells it on another connection than it answers on, so one that is not
// there yet may still be coming: an earlier Delete may have been done after its caller had left.
func (i *Instance) exitInFlight() *bundle.Exit {
	select {
	case <-i.ledger.Exited():
	case <-i.m.spawn(func() { i.m.follower.HearAll(ledger.InFlight) }):
	}
	return i.ledger.Exit("")
}

// errInitEnded: the container has ended since a Delete was sent to a shim that does not answer.
var errInitEnded = errors.Wrap(context.DeadlineExceeded, "the container has ended, and its shim does not answer")

// deleteContext gives a shim that does not answer one cleanup timeout from when its container is gone, instead of
// Delete's own deadline.
func (i *Instance) deleteContext(ctx context.Context) (context.Context, context.CancelFunc) {
	if !i.silent() {
		return context.WithCancel(ctx)
	}
	if i.ledger.InitGone() {
		return timeout.WithContext(ctx, shimproc.TimeoutCleanup)
	}
	init := i.ledger.Init()
	if init == (shimclient.ProcessID{}) {
		return context.WithCancel(ctx)
	}
	dctx, cancel := context.WithCancelCause(ctx)
	i.m.spawn(func() {
		if init.Wait(dctx) == nil && await.Sleep(dctx, timeout.Get(shimproc.TimeoutCleanup)) && i.silent() {
			cancel(errInitEnded)
		}
	})
	return dctx, func() { cancel(context.Canceled) }
}

// unanswered tells errors that a silent shim is the reason for, whether it has left the call unanswered or could not be
// sent it.
func (i *Instance) unanswered(err error) bool {
	return errdefs.IsDeadlineExceeded(err) || errdefs.IsUnavailable(err) && i.isUnresponsive()
}

// endSilentShim ends a shim that leaves a Delete unanswered and that has nothing to lose: its container's init is gone,
// it serves no other instance, and its pid is verified. True when it is dead.
func (i *Instance) endSilentShim(ctx context.Context) bool {
	p := i.process()
	if p == nil {
		return false
	}
	licence, ok := p.CloseIfUnneeded(behind{i})
	if !ok {
		return false
	}
	i.logger(ctx).Warn("shim does not answer and its container is gone, ending it")
	killed := p.Kill(ctx, licence)
	p.Reopen()
	return killed
}

// deleteFailed puts the task back for a retry. Where the shim has died meanwhile it is cleaned up instead, and the exit
// that is found then is the answer.
func (i *Instance) deleteFailed(ctx context.Context, err error) (*runtime.Exit, error) {
	i.m.pool.distrust(i.process())
	if !i.takeDeleteBack() {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, ledger.InFlight+timeout.Get(shimproc.TimeoutCleanup))
	defer cancel()
	select {
	case <-i.ledger.Exited():
		return ledger.ToExit(i.ledger.Exit("")), nil
	case <-wait.Done():
		return nil, life.ErrNone(i.kind, i.id)
	}
}

// releaseProcess gives the process back to the pool if it is of that and the delete was orderly, else sends it away
// when no other instance is behind it. One that a sandboxer of its own started is that one's to shut down: a runc shim
// would take a Shutdown between two containers of a pod for the end of the pod. One that said yes and still runs is
// lingering, see cleanUpOnceGone; nil for none.
func (i *Instance) releaseProcess(
	ctx context.Context, p *shimproc.Process, orderly bool,
) (lingering *shimproc.Leaving, err error) {
	if p == nil || i.recycle(p, orderly) || !p.Leave(behind{i}) {
		return nil, nil
	}
	if !p.IsLaunched() {
		p.End()
		return nil, nil
	}
	lingering, err = i.shutDown(ctx, p)
	if err != nil && !p.IsDead() {
		p.Stay(behind{i})
		if !i.unanswered(err) || !i.endSilentShim(ctx) {
			return nil, err
		}
	}
	if err == nil && lingering == nil {
		p.End()
	}
	return lingering, nil
}

// cleanUpDeleted ends what a delete of an earlier daemon's has begun: the shim is well and does not know the task any
// more. Unlike the undo of a create it ends nothing by force, since the task may have left something that is not the
// shim's.
func (i *Instance) cleanUpDeleted() {
	ctx := i.context()
	i.activated()
	c := i.cleaningAfter(i.ledger.Exit("") != nil)
	var lingering *shimproc.Leaving
	released := await.Retry(i.m.ctx, i.m.cleanPauses, func() (done bool) {
		var err error
		lingering, err = i.releaseProcess(ctx, i.process(), false)
		if err != nil && i.remains.SetLeft(err) {
			i.logger(ctx).WithError(err).
				Errorf("cannot release the shim of a deleted %s; it is tried again until it succeeds", i.kind)
		}
		return err == nil
	})
	switch {
	case !released: // the manager was closed; the next start goes on
	case lingering != nil:
		i.cleanUpOnceGone(lingering, c)
	default:
		i.clean(c)
	}
}

// takeDeleteBack lets the delete be tried again. True when the shim has died meanwhile: it is cleaned up instead.
func (i *Instance) takeDeleteBack() (dead bool) {
	i.onDeleteFailed()
	return i.cleanUpIfDead()
}

// finishReleased cleans up after a delete whose process is released, if that lingers once it is gone.
func (i *Instance) finishReleased(ctx context.Context, lingering *shimproc.Leaving, c cleaning) {
	if lingering != nil {
		i.cleanUpOnceGone(lingering, c)
		return
	}
	i.finishDelete(ctx, c)
}

// finishDelete cleans up. The task is deleted whatever comes of it: what cannot be removed now is tried again in the
// background, with the id reserved.
func (i *Instance) finishDelete(ctx context.Context, c cleaning) {
	err := i.cleanOnce(ctx, &c)
	i.backToPool(err == nil)
	if err == nil {
		i.m.forget(i)
		return
	}
	i.remains.SetLeft(err)
	i.logger(ctx).WithError(err).Errorf("cannot clean up after a deleted %s; it is tried again until it succeeds", i.kind)
	i.onDeleted()
	i.m.spawn(func() {
		if i.m.sleep(await.Spread(i.m.cleanPauses.First)) {
			i.clean(c)
		}
	})
}

// tellLate tells what a shim took with it when it ended after an orderly delete: shims queue their events and end
// without waiting for them. The id may have a new instance by now, so events still in flight are matched by pid.
func (i *Instance) tellLate() {
	// Told twice is better than never, so the end of the daemon does not keep it from telling.
	i.m.follower.HearAll(ledger.InFlight)
	if i.ledger.Unspoken() {
		i.tell()
	}
}
