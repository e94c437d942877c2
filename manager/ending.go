// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// goneLook is the pause between two looks at whether a socket is still listened on.
const goneLook = 20 * time.Millisecond

// die: the process is proven dead. Each of its instances is cleaned up on its own; after an orderly shutdown there is none.
func (p *Process) die(proof string) {
	p.mu.Lock()
	p.died = true
	closing, verified := p.closing, p.pid != (shimclient.ProcessID{})
	p.mu.Unlock()
	if !closing {
		by := "address"
		if verified {
			by = "pid"
		}
		metrics.Died(p.runtimeName(), by)
		log.G(p.reg.ctx).WithField("address", p.endpoint).Infof("shim is dead: %s", proof)
	}
	p.end()
	for _, m := range p.members() {
		m.died()
	}
}

func (p *Process) isOver() bool {
	return isDone(p.over)
}

// end makes the process unusable and closes what it owns, once: it is dead, or nobody needs it any more.
func (p *Process) end() {
	p.mu.Lock()
	if p.state == ended {
		p.mu.Unlock()
		return
	}
	l, logs := p.link, p.log
	p.link, p.log = nil, nil
	p.toLocked(ended)
	close(p.over)
	p.mu.Unlock()
	p.reg.drop(p)
	p.reg.config.OnEnd(p)
	if l != nil {
		_ = l.conn.Close()
	}
	if logs != nil {
		_ = logs.Close()
	}
}

// kill ends the process with SIGKILL and waits until it is proven dead, up to the cleanup timeout. For the caller to justify.
func (p *Process) kill(ctx context.Context) bool {
	ctx, cancel := timeout.WithContext(ctx, timeoutCleanup)
	defer cancel()
	pid := p.verified()
	if pid == (shimclient.ProcessID{}) {
		return false
	}
	if err := pid.Signal(syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("pid", pid.Pid).Error("cannot end the shim")
		return false
	}
	if pid.Wait(ctx) != nil {
		return false
	}
	if l, _, _ := p.snapshot(); l == nil {
		p.die("it was ended") // with a connection that is seen at its end, when all that came on it has been read
	}
	select {
	case <-p.over:
		return p.dead()
	case <-ctx.Done():
		return false
	}
}

// shutdown asks the process to go and waits until it has, each up to the shutdown timeout. One that said yes and lingers is for the
// caller to end.
func (p *Process) shutdown(ctx context.Context, id string) error {
	ctx, cancel := timeout.WithContext(ctx, timeoutShutdown)
	defer cancel()
	l, err := p.sendShutdown(ctx, id)
	if err == nil && !p.waitGone(ctx, l) {
		log.G(ctx).WithField("address", p.endpoint).Warn("shim has said yes to its shutdown and still runs")
	}
	return err
}

// sendShutdown sends Shutdown. The link that it went out on is nil when the process is gone already.
func (p *Process) sendShutdown(ctx context.Context, id string) (*link, error) {
	l, err := p.use(ctx, forced)
	if errors.Is(err, errShimDead) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = l.task.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	if errdefs.IsDeadlineExceeded(err) {
		p.suspect()
	}
	if err != nil && !errors.Is(err, shimclient.ErrConnectionLost) && !errdefs.IsNotFound(err) {
		return nil, errors.Wrap(err, "cannot shut the shim down")
	}
	return l, nil
}

// waitGone waits for the end of the process: by its pid where that is verified, else by the end of the connection l, nil when that
// has ended already, and of a unix socket's.
func (p *Process) waitGone(ctx context.Context, l *link) bool {
	if pid := p.verified(); pid != (shimclient.ProcessID{}) {
		return pid.Wait(ctx) == nil
	}
	if l != nil {
		select {
		case <-l.conn.Done():
		case <-ctx.Done():
			return false
		}
	}
	for p.endpoint.Unix() && !p.isOver() && p.reach() != shimclient.Refused {
		select {
		case <-time.After(goneLook):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// away waits until the process that is on its way out is gone, or stays after all, up to the cleanup timeout.
func (p *Process) away(ctx context.Context) error {
	ctx, cancel := timeout.WithContext(ctx, timeoutCleanup)
	defer cancel()
	for {
		p.mu.Lock()
		leaving, changed := p.closing && p.state != ended, p.changed
		p.mu.Unlock()
		if !leaving {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Wrap(ctx.Err(), "waiting for an earlier shim of the group to go")
		}
	}
}

// awaitEndOrKill waits for the end of a process that said yes to its shutdown; false when the manager was closed
// before. One that takes longer than patience and whose pid is verified is ended: nobody is behind it and nobody can
// come, so it has nothing to lose.
func (p *Process) awaitEndOrKill(ctx context.Context, patience time.Duration) bool {
	for {
		wctx, cancel := context.WithTimeout(ctx, patience)
		ended := p.awaitEnd(wctx)
		cancel()
		if ended {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if pid := p.verified(); pid != (shimclient.ProcessID{}) {
			log.G(ctx).WithField("pid", pid.Pid).Error("shim does not end after its shutdown, ending it")
			p.kill(ctx)
		}
	}
}

// awaitEnd waits for the end of the process itself: by its pid where that is verified, else until its death is proven
// otherwise.
func (p *Process) awaitEnd(ctx context.Context) bool {
	if pid := p.verified(); pid != (shimclient.ProcessID{}) {
		return pid.Wait(ctx) == nil
	}
	select {
	case <-p.over:
		return true
	case <-ctx.Done():
		return false
	}
}
