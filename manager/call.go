// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// call runs f with the Task client of the instance's process. What the shim answers passes through unchanged; a dead shim is
// NotFound, one that is being reconnected is Unavailable once the verdict cannot be awaited any longer.
func (i *Instance) call(ctx context.Context, mode shimproc.Mode, f func(context.Context, *shimclient.Task) error) error {
	return i.callLink(ctx, mode, func(ctx context.Context, l *shimproc.Link) error { return f(ctx, l.Task) })
}

// callLink is call for all APIs that the connection serves.
func (i *Instance) callLink(ctx context.Context, mode shimproc.Mode, f func(context.Context, *shimproc.Link) error) error {
	p := i.process()
	if p == nil {
		return errNoInstance(i.kind, i.id)
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
func outlast[T any](ctx context.Context, run func(func()), f func(context.Context) (T, error)) (c *outlasting[T], left bool) {
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

// detach runs f, which the manager's Close waits for, without the caller's cancellation and returns when it does or the caller leaves.
func detach[T any](ctx context.Context, m *ShimManager, f func(context.Context) (T, error)) (T, error) {
	c, left := outlast(ctx, func(f func()) { m.spawn(f) }, f)
	if left {
		var none T
		return none, ctx.Err()
	}
	return c.value, c.err
}

// settled waits until a restored instance's shim has answered, up to the load timeout. Every other listed state needs no waiting, and
// a forced call waits no longer than until there is somebody to send it to.
func (i *Instance) settled(ctx context.Context, mode shimproc.Mode) error {
	if st, _ := i.watch(); st != restoring {
		return i.usable(st)
	}
	i.m.urge()
	wctx, cancel := timeout.WithContext(ctx, TimeoutLoad)
	defer cancel()
	var verdict error
	err := await.Until(wctx, func() (await.Wake, bool) {
		moved := i.moved()
		st, changed := i.watch()
		switch {
		case st != restoring:
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

// isUnresponsive tells whether the process is known to leave calls unanswered.
func (i *Instance) isUnresponsive() bool {
	p := i.process()
	if p == nil {
		return false
	}
	_, st, _ := p.Watch()
	return st == shimproc.Unresponsive
}

// moved is closed when the state of the process changes.
func (i *Instance) moved() <-chan struct{} {
	_, moved := i.link()
	return moved
}

func (i *Instance) usable(st state) error {
	if !st.listed() {
		return errNoInstance(i.kind, i.id)
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
