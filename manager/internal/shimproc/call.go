// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/shimclient"
)

// Mode says how a call treats a shim that does not answer or a connection that is lost.
type Mode int

const (
	// Once: changes something; it waits some time for an unresponsive shim, and a lost connection leaves open
	// whether it was done.
	Once Mode = iota
	// Forced: goes out even while the shim is unresponsive, since it is how a caller gets rid of it.
	Forced
	// Repeatable: asks without changing anything, so it is sent again after a reconnect, and fails at once while the
	// shim is unresponsive.
	Repeatable
)

// Call runs f with the connection of the process. What the shim answers passes through unchanged; a dead shim is
// NotFound, one that is being reconnected is Unavailable once the verdict cannot be awaited any longer.
func (p *Process) Call(ctx context.Context, mode Mode, f func(context.Context, *Link) error) error {
	for {
		l, err := p.Use(ctx, mode)
		if err != nil {
			return err
		}
		err = f(ctx, l)
		switch {
		case errdefs.IsDeadlineExceeded(err):
			p.Suspect() // the caller's deadline is often the shorter one
		case errdefs.IsNotImplemented(err) && l.Task.Version() > 2 && p.downgradeFor(ctx, l):
			continue
		case errors.Is(err, shimclient.ErrConnectionLost):
			verdict := p.afterLoss(ctx, l, mode, err)
			if verdict != nil {
				return verdict
			}
			if mode == Repeatable {
				continue
			}
		case ctx.Err() == nil:
			p.answered(l) // whatever it says, it says something
		}
		return err
	}
}

// afterLoss waits for what becomes of the process after its connection was lost during a call on used: ErrDead when
// it is dead, nil when it lives and the call may be repeated. The call may have seen the loss before the connection is
// given up, see shimclient.Conn.Done. The kernel accepts connections for a shim that is just dying, until its last
// thread is gone: for a call that is not sent again it takes an answer on the next connection to know that the shim
// lives, or the silence of one.
func (p *Process) afterLoss(ctx context.Context, used *Link, mode Mode, lost error) error {
	wait := mode
	if mode != Repeatable {
		wait = Forced // it is not sent again, so that only the verdict is awaited
	}
	wctx, cancel := timeout.WithContext(ctx, TimeoutLoad)
	defer cancel()
	for {
		if !p.awaitLoss(wctx, used) {
			return lost
		}
		l, err := p.Use(ctx, wait)
		switch {
		case err != nil && ctx.Err() != nil:
			return lost
		case err != nil:
			return err
		case mode == Repeatable, !errors.Is(p.Ask(wctx, l.Task), shimclient.ErrConnectionLost):
			return nil
		}
		used = l
	}
}

// awaitLoss waits until a lost connection is given up. False when the context or the daemon ends first: there is no
// reconnect at the end of the daemon.
func (p *Process) awaitLoss(ctx context.Context, lost *Link) bool {
	var l *Link
	err := await.Until(ctx, func() (await.Wake, bool) {
		var changed <-chan struct{}
		l, _, changed = p.Watch()
		return await.Wake{changed, p.reg.ctx.Done()}, l == nil || l.Conn != lost.Conn || p.reg.ctx.Err() != nil
	})
	return err == nil && (l == nil || l.Conn != lost.Conn)
}

// Use returns the link for a call. While there is none it waits for one, up to the load timeout. Of an unresponsive
// process a forced call gets the link if there is one, one that only asks an error at once, and one that changes
// something waits too: a shim that was merely slow must not cost the start of a container.
func (p *Process) Use(ctx context.Context, mode Mode) (*Link, error) {
	l, st, changed := p.Watch()
	if p.noAddress != nil && st != Ended {
		return nil, errLost(p.noAddress)
	}
	if st == Connected || st == Unresponsive && mode == Forced && l != nil {
		return l, nil
	}
	p.reg.config.Urge()
	wctx, cancel := timeout.WithContext(ctx, TimeoutLoad)
	defer cancel()
	var verdict error
	err := await.Until(wctx, func() (await.Wake, bool) {
		l, st, changed = p.Watch()
		switch {
		case st == Connected, st == Unresponsive && mode == Forced && l != nil:
		case st == Unresponsive && mode == Repeatable:
			verdict = p.unavailable()
		case st == Ended:
			verdict = ErrDead
		default:
			return await.Wake{changed}, false
		}
		return await.Wake{}, true
	})
	switch {
	case err == nil && verdict == nil:
		return l, nil
	case err == nil:
		return nil, verdict
	case ctx.Err() != nil:
		return nil, errors.Wrap(ctx.Err(), "waiting for the connection to the shim")
	}
	return nil, p.unavailable()
}

// LostAddress says why the process cannot be reached at all: its address is not known any more. Nil where it is known.
func (p *Process) LostAddress() error {
	if p.noAddress == nil {
		return nil
	}
	return errLost(p.noAddress)
}

func (p *Process) unavailable() error {
	if p.noAddress != nil {
		return errLost(p.noAddress)
	}
	p.mu.Lock()
	since, what := p.since, "cannot be reached"
	if p.link != nil {
		what = "does not answer"
	}
	p.mu.Unlock()
	return Unavailable(p.Endpoint.String(), since, what)
}
