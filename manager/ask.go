// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// stateFresh is for how long an answer to State stands for what the shim would say, while nothing has changed since:
// short enough for a client that asks every few seconds to ask the shim itself, so that a silent one is noticed.
const stateFresh = time.Second

// learnPid keeps the pid of init that the shim told.
func (i *Instance) learnPid(pid uint32) { i.ledger.LearnPid(pid, i.shimPid()) }

// current is the state as the record has it, where that is known to be what the shim would say: the runtime is vouched
// for (runc's shim answers from its memory too), the process answers, no change is under way or has failed, and the pid
// is its init's and alive. record is which way of the ledger's that is looked up.
func (i *Instance) current(record func(*ledger.Ledger) (runtime.State, bool)) (runtime.State, bool) {
	i.mu.Lock()
	st, vouched, p := i.state, i.binary.Runtime == plugins.RuntimeRuncV2, i.proc
	i.mu.Unlock()
	if st != life.Running || p == nil || !vouched || !p.IsCurrent() {
		return runtime.State{}, false
	}
	return record(i.ledger)
}

// fresh is the state of a task whose shim was asked for it less than stateFresh ago, see current.
func (i *Instance) fresh() (runtime.State, bool) {
	if !i.ledger.StatedWithin(stateFresh) {
		return runtime.State{}, false
	}
	return i.current((*ledger.Ledger).Current)
}

// stateNow asks for the state; with patience > 0 the last known one is the answer after that time.
func (i *Instance) stateNow(ctx context.Context, patience time.Duration) (runtime.State, error) {
	st, _ := i.watch()
	if !st.IsListed() {
		return runtime.State{}, life.ErrNone(i.kind, i.id)
	}
	if st == life.Restoring || i.silent() || i.ledger.Exit("") != nil {
		// An exit is the last word. Deleted in the shim and not yet here: its caller asks for the state before it
		// deletes again.
		if s, ok := i.ledger.LastKnown(); ok {
			return s, nil
		}
	}
	actx, cancel := answerBefore(ctx, patience)
	defer cancel()
	s, err := i.askState(actx, "")
	if err == nil {
		return i.merge(s), nil
	}
	if errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || errdefs.IsNotFound(err) && i.lostTask() {
		if s, ok := i.ledger.LastKnown(); ok {
			return s, nil
		}
	}
	return runtime.State{}, err
}

// lostTask: a living shim has said that there is no such task. Where its exit is known it was deleted by a Delete that
// no caller waited for, and is one that is deleted in the shim and not yet here.
func (i *Instance) lostTask() bool {
	if st, _ := i.watch(); !st.IsListed() || i.processDead() || i.ledger.Exit("") == nil {
		return false
	}
	i.ledger.MarkDeleted()
	return true
}

// answerBefore leaves the caller's context some time to be answered from the record: containerd gives a State 2 s in
// all.
func answerBefore(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	if patience > 0 {
		return context.WithTimeout(ctx, patience)
	}
	if d, ok := ctx.Deadline(); ok {
		left := time.Until(d)
		return context.WithTimeout(ctx, left-min(left/4, 250*time.Millisecond))
	}
	return context.WithCancel(ctx)
}

// askState asks the shim for the state of init or of an exec, once a restore has come to it.
func (i *Instance) askState(ctx context.Context, execID string) (*taskapi.StateResponse, error) {
	if err := i.settled(ctx, shimproc.Repeatable); err != nil {
		return nil, err
	}
	return i.sendState(ctx, execID)
}

func (i *Instance) sendState(ctx context.Context, execID string) (*taskapi.StateResponse, error) {
	var r *taskapi.StateResponse
	asked := i.ledger.Epoch()
	err := i.call(ctx, shimproc.Repeatable, func(ctx context.Context, c *shimclient.Task) (err error) {
		r, err = c.State(ctx, &taskapi.StateRequest{ID: i.id, ExecID: execID})
		return err
	})
	if err == nil && execID == "" {
		i.verifyAgain(ctx)
		i.learnPid(r.Pid)
		i.ledger.LearnState(r, asked)
	}
	return r, err
}

// merge is the shim's answer, with the exit as it was first learnt.
func (i *Instance) merge(r *taskapi.StateResponse) runtime.State {
	s := toState(r)
	if s.Status == runtime.StoppedStatus {
		s.ExitStatus, s.ExitedAt = i.ledger.StoppedAs("", s.ExitStatus)
	}
	return s
}

func toState(r *taskapi.StateResponse) runtime.State {
	return runtime.State{
		Status: ledger.StatusOf(r.Status), Pid: r.Pid, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr,
		Terminal:   r.Terminal,
		ExitStatus: r.ExitStatus, ExitedAt: ledger.TimeOf(r.ExitedAt),
	}
}

// call runs f with the Task client of the instance's process. What the shim answers passes through unchanged; a dead
// shim is NotFound, one that is being reconnected is Unavailable once the verdict cannot be awaited any longer.
func (i *Instance) call(
	ctx context.Context, mode shimproc.Mode, f func(context.Context, *shimclient.Task) error,
) error {
	return i.callLink(ctx, mode, func(ctx context.Context, l *shimproc.Link) error { return f(ctx, l.Task) })
}

// callLink is call for all APIs that the connection serves.
func (i *Instance) callLink(
	ctx context.Context, mode shimproc.Mode, f func(context.Context, *shimproc.Link) error,
) error {
	p := i.process()
	if p == nil {
		return life.ErrNone(i.kind, i.id)
	}
	return p.Call(ctx, mode, f)
}

// outlasting is a call that goes on when its caller leaves.
type outlasting[T any] struct {
	done  chan struct{} // closed when it has ended; value and err are set then
	value T
	err   error
}

// outlast has run do f without the caller's cancellation, and returns when that has ended or the caller leaves.
func outlast[T any](
	ctx context.Context, run func(func()), f func(context.Context) (T, error),
) (c *outlasting[T], left bool) {
	c = &outlasting[T]{done: make(chan struct{})}
	run(func() {
		defer close(c.done)
		c.value, c.err = f(context.WithoutCancel(ctx))
	})
	select {
	case <-c.done:
		return c, false
	case <-ctx.Done():
	}
	select {
	case <-c.done: // both at once: what was done counts
		return c, false
	default:
		return c, true
	}
}

// detach runs f, which the manager's Close waits for, without the caller's cancellation and returns when it does or the
// caller leaves.
func detach[T any](ctx context.Context, m *ShimManager, f func(context.Context) (T, error)) (T, error) {
	c, left := outlast(ctx, func(f func()) { m.spawn(f) }, f)
	if left {
		var none T
		return none, ctx.Err()
	}
	return c.value, c.err
}

// settled waits until a restored instance's shim has answered, up to the load timeout. Every other listed state needs
// no waiting, and a forced call waits no longer than until there is a connection to send it on.
func (i *Instance) settled(ctx context.Context, mode shimproc.Mode) error {
	if st, _ := i.watch(); st != life.Restoring {
		return i.usable(st)
	}
	i.m.urge()
	wctx, cancel := timeout.WithContext(ctx, shimproc.TimeoutLoad)
	defer cancel()
	var verdict error
	err := await.Until(wctx, func() (await.Wake, bool) {
		moved := i.moved()
		st, changed := i.watch()
		switch {
		case st != life.Restoring:
			verdict = i.usable(st)
		case !i.isUnresponsive():
			return await.Wake{changed, moved}, false
		case mode != shimproc.Forced:
			verdict = i.unavailable()
		}
		return await.Wake{}, true
	})
	switch {
	case err == nil:
		return verdict
	case ctx.Err() != nil:
		return errors.Wrapf(ctx.Err(), "waiting for %s %s to be restored", i.kind, i.id)
	}
	return i.unavailable()
}

func (i *Instance) usable(st life.State) error {
	if !st.IsListed() {
		return life.ErrNone(i.kind, i.id)
	}
	return nil
}

// unavailable says since when the instance has been waiting for its shim.
func (i *Instance) unavailable() error {
	if p := i.process(); p != nil && p.LostAddress() != nil {
		return p.LostAddress()
	}
	i.mu.Lock()
	since := i.since
	i.mu.Unlock()
	return shimproc.Unavailable(i.id, since, "has not answered after the daemon's start,")
}

// box calls the Sandbox API of the instance's shim.
func (i *Instance) box(
	ctx context.Context, mode shimproc.Mode, f func(context.Context, *shimclient.Sandbox) error,
) error {
	return i.callLink(ctx, mode, func(ctx context.Context, l *shimproc.Link) error { return f(ctx, l.Conn.Sandbox()) })
}

// verifyAgain verifies the shim's pid where the Connect of its launch was not answered in time. What cannot be verified
// after some tries never will be: a VM's pid, or one of another pid namespace.
func (i *Instance) verifyAgain(ctx context.Context) {
	p := i.process()
	if p == nil || p.Verified() != (shimclient.ProcessID{}) || !p.MayTryToVerify() {
		return
	}
	i.verifyShim(ctx)
}

// verifyShim makes sure that the shim's pid is known, for bundles whose record does not have it.
func (i *Instance) verifyShim(ctx context.Context) {
	p := i.process()
	if p == nil {
		return
	}
	if l, _, _ := p.Watch(); l != nil {
		i.mu.Lock()
		b, token := i.binary, i.ledger.Passage().Token()
		i.mu.Unlock()
		p.Verify(ctx, l, b, token)
	}
	i.ledger.RecordShim(p.Verified())
}

// sendStart starts init ("") or an exec and returns its pid.
func (i *Instance) sendStart(ctx context.Context, execID string) (pid uint32, err error) {
	err = i.call(ctx, shimproc.Once, func(ctx context.Context, c *shimclient.Task) error {
		r, err := c.Start(ctx, &taskapi.StartRequest{ID: i.id, ExecID: execID})
		if err == nil {
			pid = r.Pid
		}
		return err
	})
	return pid, err
}

// ignores tells errors of a forced call that the shim has left unanswered for the whole deadline, or that could not be
// sent to it.
func (i *Instance) ignores(err error) bool {
	return errors.Is(err, shimclient.ErrNoAnswer) || errdefs.IsUnavailable(err) && i.silent()
}

// killInit ends the container's init without its shim. True when that was its init for certain, its alone, and it is
// ended.
func (i *Instance) killInit(ctx context.Context) bool {
	pid := i.ledger.Init()
	if (pid == shimclient.ProcessID{}) || i.sharesInit(uint32(pid.Pid)) {
		return false
	}
	if err := pid.Signal(syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		i.logger(ctx).WithError(err).WithField("pid", pid.Pid).Error("cannot end a container without its shim")
		return false
	}
	// Who deletes next asks whether it is gone.
	wctx, cancel := timeout.WithContext(ctx, shimproc.TimeoutCleanup)
	defer cancel()
	if err := pid.Wait(wctx); err != nil {
		i.logger(ctx).WithError(err).WithField("pid", pid.Pid).Error("a container's init does not end at a SIGKILL")
		return false
	}
	i.logger(ctx).WithField("pid", pid.Pid).Warn("ended a container's init without its shim")
	return true
}

// sharesInit tells whether another task of the same shim has the same pid, as in a VM, whose process stands for all
// containers in it.
func (i *Instance) sharesInit(pid uint32) bool {
	p := i.process()
	if p == nil {
		return false
	}
	for _, o := range instancesOf(p) {
		if o != i && o.ledger.Pid("") == pid {
			return true
		}
	}
	return false
}
