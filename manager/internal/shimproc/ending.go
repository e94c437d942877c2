// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

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
		log.G(p.reg.ctx).WithField("address", p.Endpoint).Infof("shim is dead: %s", proof)
	}
	p.End()
	for _, m := range p.Members() {
		m.Died()
	}
}

func (p *Process) IsOver() bool {
	return isDone(p.over)
}

// End makes the process unusable and closes what it owns, once: it is dead, or nobody needs it any more.
func (p *Process) End() {
	p.mu.Lock()
	if p.state == Ended {
		p.mu.Unlock()
		return
	}
	l, logs := p.link, p.log
	p.link, p.log = nil, nil
	p.toLocked(Ended)
	close(p.over)
	p.mu.Unlock()
	p.reg.drop(p)
	p.reg.config.OnEnd(p)
	if l != nil {
		_ = l.Conn.Close()
	}
	if logs != nil {
		_ = logs.Close()
	}
}

// Kill ends the process with SIGKILL and waits until it is proven dead, up to the cleanup timeout. For the caller to justify.
func (p *Process) Kill(ctx context.Context) bool {
	ctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	pid := p.Verified()
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
	if l, _, _ := p.Watch(); l == nil {
		p.die("it was ended") // with a connection that is seen at its end, when all that came on it has been read
	}
	select {
	case <-p.over:
		return p.IsDead()
	case <-ctx.Done():
		return false
	}
}

// ShutDown asks the process to go and waits until it has, each up to the shutdown timeout. One that said yes and lingers is for the
// caller to end.
func (p *Process) ShutDown(ctx context.Context, id string) error {
	ctx, cancel := timeout.WithContext(ctx, TimeoutShutdown)
	defer cancel()
	l, err := p.AskToGo(ctx, id)
	if err == nil && !p.WaitGone(ctx, l) {
		log.G(ctx).WithField("address", p.Endpoint).Warn("shim has said yes to its shutdown and still runs")
	}
	return err
}

// AskToGo sends Shutdown. The link that it went out on is nil when the process is gone already.
func (p *Process) AskToGo(ctx context.Context, id string) (*Link, error) {
	l, err := p.Use(ctx, Forced)
	if errors.Is(err, ErrDead) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = l.Task.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	if errdefs.IsDeadlineExceeded(err) {
		p.Suspect()
	}
	if err != nil && !errors.Is(err, shimclient.ErrConnectionLost) && !errdefs.IsNotFound(err) {
		return nil, errors.Wrap(err, "cannot shut the shim down")
	}
	return l, nil
}

// WaitGone waits for the end of the process: by its pid where that is verified, else by the end of the connection l, nil when that
// has ended already, and of a unix socket's.
func (p *Process) WaitGone(ctx context.Context, l *Link) bool {
	if pid := p.Verified(); pid != (shimclient.ProcessID{}) {
		return pid.Wait(ctx) == nil
	}
	if l != nil {
		select {
		case <-l.Conn.Done():
		case <-ctx.Done():
			return false
		}
	}
	for p.Endpoint.Unix() && !p.IsOver() && p.reach() != shimclient.Refused {
		select {
		case <-time.After(goneLook):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// AwaitClosed waits until the process that is on its way out is gone, or stays after all, up to the cleanup timeout.
func (p *Process) AwaitClosed(ctx context.Context) error {
	ctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	for {
		p.mu.Lock()
		leaving, changed := p.closing && p.state != Ended, p.changed
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

// AwaitEndOrKill waits for the end of a process that said yes to its shutdown; false when the manager was closed
// before. One that takes longer than patience and whose pid is verified is ended: nobody is behind it and nobody can
// come, so it has nothing to lose.
func (p *Process) AwaitEndOrKill(ctx context.Context, patience time.Duration) bool {
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
		if pid := p.Verified(); pid != (shimclient.ProcessID{}) {
			log.G(ctx).WithField("pid", pid.Pid).Error("shim does not end after its shutdown, ending it")
			p.Kill(ctx)
		}
	}
}

// awaitEnd waits for the end of the process itself: by its pid where that is verified, else until its death is proven
// otherwise.
func (p *Process) awaitEnd(ctx context.Context) bool {
	if pid := p.Verified(); pid != (shimclient.ProcessID{}) {
		return pid.Wait(ctx) == nil
	}
	select {
	case <-p.over:
		return true
	case <-ctx.Done():
		return false
	}
}
