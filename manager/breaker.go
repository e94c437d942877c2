// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// suspect: a call was not answered in time. One Connect decides, for the process and all its instances.
func (p *Process) suspect() {
	p.mu.Lock()
	start := p.state == connected && !p.probing && p.m.ctx.Err() == nil
	p.probing = p.probing || start
	p.mu.Unlock()
	if start {
		p.m.spawn(p.probe)
	}
}

// probe asks with Connect until there is an answer, or the connection or the process is gone. The first one unanswered opens the
// breaker, the first one answered closes it.
func (p *Process) probe() {
	defer func() {
		p.mu.Lock()
		p.probing = false
		p.mu.Unlock()
	}()
	for round := 1; ; round++ {
		l, st, _ := p.snapshot()
		if l == nil || st == ended || p.m.ctx.Err() != nil {
			return
		}
		if p.isGone() {
			_ = l.conn.Close() // it is another process that accepts and is silent
			return
		}
		asked := time.Now()
		if p.decides(l, p.ask(p.m.ctx, l.task)) {
			return
		}
		p.silent(l)
		if isAnewRound(round) && p.answersAnew() {
			// A shim that has just woken answers on both, and the answers that are on their way must not be lost.
			if p.decides(l, p.ask(p.m.ctx, l.task)) {
				return
			}
			// The connection is out of step, not the shim: a new one is made as after any loss.
			log.G(p.m.ctx).WithField("address", p.endpoint).Warn("shim answers on a new connection and not on the old one, giving that up")
			_ = l.conn.Close()
			return
		}
		// There is always a question under way, which a shim that wakes answers at once, so there is no pause but after one that took no time.
		if !p.m.sleep(max(0, probePause-time.Since(asked))) || p.escalate() {
			return
		}
	}
}

// isAnewRound thins out the attempts on a new connection: each leaves one behind that a stopped shim has to take up when it goes on.
func isAnewRound(round int) bool { return round&(round-1) == 0 || round%anewRounds == 0 }

// decides looks at what a Connect on a link came to. True: no more probing, the shim has answered or the link is lost.
func (p *Process) decides(l *link, err error) bool {
	switch {
	case errors.Is(err, shimclient.ErrConnectionLost), p.m.ctx.Err() != nil:
		return true
	case errors.Is(err, shimclient.ErrNoAnswer):
		return false
	}
	p.answered(l)
	return true
}

// ask sends one Connect. Whatever the shim says, it has answered.
func (p *Process) ask(ctx context.Context, task *shimclient.Task) error {
	_, err := task.Connect(ctx, &taskapi.ConnectRequest{ID: p.anyID()})
	return err
}

// answersAnew asks on a connection of its own. A shim that is stopped accepts that in its backlog and does not answer.
func (p *Process) answersAnew() bool {
	ctx, cancel := timeout.WithContext(p.m.ctx, TimeoutLoad)
	defer cancel()
	conn, err := shimclient.Dial(ctx, p.endpoint, p.m.config.Deadlines)
	if err != nil {
		return false
	}
	defer conn.Close()
	task, err := conn.Task(p.taskVersion())
	if err != nil {
		return false
	}
	err = p.ask(ctx, task)
	return err == nil || !errdefs.IsUnavailable(err) && !errdefs.IsDeadlineExceeded(err) && ctx.Err() == nil
}

func (p *Process) silent(l *link) {
	p.m.pool.distrust(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link == l && p.state == connected {
		log.G(p.m.ctx).WithField("address", p.endpoint).Warn("shim does not answer; its containers are left alone and it is probed until it does")
		p.toLocked(unresponsive)
	}
}

// escalate ends a shim that has been unresponsive for longer than config allows, which by default it does for ever. Its stacks are in
// the log before that: runc's shim, and those made with containerd's package, dump them at SIGUSR1. True when it was ended.
func (p *Process) escalate() bool {
	limit := p.m.config.EscalateAfter
	p.mu.Lock()
	due := limit > 0 && p.state == unresponsive && time.Since(p.since) >= limit
	pid := p.pid
	p.mu.Unlock()
	if !due || pid == (shimclient.ProcessID{}) {
		return false
	}
	log.G(p.m.ctx).WithField("address", p.endpoint).WithField("pid", pid.Pid).
		Errorf("shim has not answered for %s, ending it and its containers, as configured", limit)
	if err := dumpStacks(pid); err != nil {
		log.G(p.m.ctx).WithError(err).Warn("cannot make the shim dump its stacks")
	} else if !p.m.sleep(dumpTime) {
		return false
	}
	if _, st, _ := p.snapshot(); st != unresponsive {
		return false // woken by the signal, or by chance
	}
	return p.kill(p.m.ctx)
}

func (p *Process) answered(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link == l && p.state == unresponsive {
		log.G(p.m.ctx).WithField("address", p.endpoint).Info("shim answers again")
		p.toLocked(connected)
	}
}

// anyID is the id of one of the instances, or the one that a warm shim was started under, for calls that are about the process.
func (p *Process) anyID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.instances {
		return i.id
	}
	if p.warm != nil {
		return p.warm.dir.ID
	}
	return ""
}
