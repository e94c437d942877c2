// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// Suspect: a call was not answered in time. One Connect decides, for the process and all its instances.
func (p *Process) Suspect() {
	p.mu.Lock()
	start := p.state == Connected && !p.probing && p.reg.ctx.Err() == nil
	p.probing = p.probing || start
	p.mu.Unlock()
	if start {
		p.spawn(p.probe)
	}
}

// probe asks with Connect until there is an answer, or the connection or the process is gone. The first one
// unanswered opens the breaker, the first one answered closes it.
func (p *Process) probe() {
	for {
		l, st, _ := p.Watch()
		if l != nil && st != Ended {
			p.probeLink(l)
		}
		if p.endProbe(l) {
			return
		}
	}
}

// endProbe ends the probing of a link. False when there is another one meanwhile, of a shim that has still not
// answered.
func (p *Process) endProbe(l *Link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probing = p.state == Unresponsive && p.link != nil && p.link != l && p.reg.ctx.Err() == nil
	return !p.probing
}

// probeLink asks on one connection until there is an answer, or the connection is gone.
func (p *Process) probeLink(l *Link) {
	for round := 1; p.reg.ctx.Err() == nil; round++ {
		if p.IsGone() {
			_ = l.Conn.Close() // it is another process that accepts and is silent
			return
		}
		asked := time.Now()
		if p.decides(l, p.Ask(p.reg.ctx, l.Task)) {
			return
		}
		p.OnSilent(l)
		if isAnewRound(round) && p.answersAnew() {
			// A shim that has just woken answers on both, and the answers that are on their way must not be lost.
			if p.decides(l, p.Ask(p.reg.ctx, l.Task)) {
				return
			}
			// The connection is out of step, not the shim: a new one is made as after any loss.
			p.logger(p.reg.ctx).
				Warn("shim answers on a new connection and not on the old one, giving that up")
			_ = l.Conn.Close()
			return
		}
		// There is always a question under way, which a shim that wakes answers at once, so there is no pause but
		// after one that took no time.
		if !await.Sleep(p.reg.ctx, max(0, probePause-time.Since(asked))) {
			return
		}
	}
}

// isAnewRound thins out the attempts on a new connection: each leaves one behind that a stopped shim has to take up
// when it goes on.
func isAnewRound(round int) bool { return round&(round-1) == 0 || round%anewRounds == 0 }

// decides looks at what a Connect on a link came to. True: no more probing, the shim has answered or the link is lost.
func (p *Process) decides(l *Link, err error) bool {
	switch {
	case errors.Is(err, shimclient.ErrConnectionLost), p.reg.ctx.Err() != nil:
		return true
	case errors.Is(err, shimclient.ErrNoAnswer):
		return false
	}
	p.answered(l)
	return true
}

// Ask sends one Connect. Whatever the shim says, it has answered.
func (p *Process) Ask(ctx context.Context, task *shimclient.Task) error {
	_, err := task.Connect(ctx, &taskapi.ConnectRequest{ID: p.anyID()})
	return err
}

// answersAnew asks on a connection of its own. A shim that is stopped accepts that in its backlog and does not answer.
func (p *Process) answersAnew() bool {
	ctx, cancel := timeout.WithContext(p.reg.ctx, TimeoutLoad)
	defer cancel()
	conn, err := shimclient.Dial(ctx, p.Endpoint, p.limits())
	if err != nil {
		return false
	}
	defer conn.Close()
	if p.mayBeAnother(conn) && p.recognize(ctx, conn) != nil {
		return false
	}
	task, err := conn.Task(p.TaskVersion())
	if err != nil {
		return false
	}
	err = p.Ask(ctx, task)
	return err == nil || !errdefs.IsUnavailable(err) && !errdefs.IsDeadlineExceeded(err) && ctx.Err() == nil
}

// OnSilent: a Connect on l was not answered.
func (p *Process) OnSilent(l *Link) {
	p.fallSilent("does not answer", Connected, l)
}

// OnUnreachable: there has been no connection for as long as a Connect may take. To callers that is the same as one
// that is not answered.
func (p *Process) OnUnreachable() {
	p.fallSilent("cannot be reached", Connecting, nil)
}

// fallSilent opens the breaker if the process is still in a state, with a link. From here on the process counts as
// silent until it has answered, whatever becomes of its connection.
func (p *Process) fallSilent(what string, from State, on *Link) {
	p.reg.config.OnDistrust(p)
	p.mu.Lock()
	if p.state != from || p.link != on {
		p.mu.Unlock()
		return
	}
	p.toLocked(Unresponsive)
	escalates := p.reg.config.EscalateAfter > 0 && !p.escalates
	p.escalates = p.escalates || escalates
	p.mu.Unlock()
	metrics.BreakerTo(p.runtimeName(), Unresponsive.String())
	p.logger(p.reg.ctx).
		Warnf("shim %s; its containers are left alone and it is tried until it answers", what)
	if escalates {
		p.spawn(p.escalateWhenDue)
	}
}

// excuse: what keeps the process from being reached is this daemon's. It is not held against the shim.
func (p *Process) excuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link == nil {
		p.since = time.Now()
	}
}

func (p *Process) answered(l *Link) {
	p.mu.Lock()
	closes, since := p.link == l && p.state == Unresponsive, p.since
	if closes {
		p.toLocked(Connected)
	}
	p.mu.Unlock()
	if closes {
		metrics.BreakerTo(p.runtimeName(), Connected.String())
		p.logger(p.reg.ctx).WithField("after", time.Since(since).Round(time.Millisecond)).Info("shim answers again")
	}
}
