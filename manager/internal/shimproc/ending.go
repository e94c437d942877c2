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
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// goneLook is the pause between two looks at whether a socket is still listened on.
const goneLook = 20 * time.Millisecond

// die: the process is proven dead. Each of its instances is cleaned up on its own; after an orderly shutdown there is
// none.
func (p *Process) die(proof string) {
	p.mu.Lock()
	p.died = true
	closing, verified := p.closing, p.pid != (shimclient.ProcessID{})
	counts := !closing && !p.killed && len(p.behind) > 0
	p.mu.Unlock()
	if counts {
		by := "address"
		if verified {
			by = "pid"
		}
		metrics.Died(p.runtimeName(), by)
	}
	if !closing {
		p.logger(p.reg.ctx).Infof("shim is dead: %s", proof)
	}
	p.End()
	for _, m := range p.Members() {
		p.reg.config.OnDied(m)
	}
}

// End makes the process unusable and closes what it owns, once: it is dead, or not needed any more.
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

// Kill ends the process with SIGKILL and waits until it is proven dead, up to the cleanup timeout. Nothing is done
// without a licence, nor to a process whose pid is not verified.
func (p *Process) Kill(ctx context.Context, by Licence) bool {
	ctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	pid := p.Verified()
	if pid == (shimclient.ProcessID{}) || by == (Licence{}) || by.launch != "" {
		return false
	}
	p.logger(ctx).Debugf("killing a shim: %s", by.ground)
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	if err := pid.Signal(syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		p.logger(ctx).WithError(err).Error("cannot end the shim")
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

// ShutDown asks the process to go and waits until it has, each up to the shutdown timeout. One that said yes and
// lingers is for the caller to end.
func (p *Process) ShutDown(ctx context.Context, id string) error {
	ctx, cancel := timeout.WithContext(ctx, TimeoutShutdown)
	defer cancel()
	leaving, err := p.AskToGo(ctx, id)
	if err == nil && !leaving.WaitGone(ctx) {
		leaving.WarnOfLingering(ctx)
	}
	return err
}

// WarnOfLingering logs that the process has said yes to its shutdown and still runs.
func (l *Leaving) WarnOfLingering(ctx context.Context) {
	l.p.logger(ctx).Warn("shim has said yes to its shutdown and still runs")
}

// AskToGo sends Shutdown. One that is gone already has said yes.
func (p *Process) AskToGo(ctx context.Context, id string) (*Leaving, error) {
	l, err := p.Use(ctx, Forced)
	if errors.Is(err, ErrDead) {
		return p.SaidYes(nil), nil
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
	return p.SaidYes(l), nil
}

// WaitGone waits for the end of the process: by its pid where that is verified, else by the end of the connection and
// of a unix socket's.
func (l *Leaving) WaitGone(ctx context.Context) bool {
	p := l.p
	if pid := p.Verified(); pid != (shimclient.ProcessID{}) {
		return pid.Wait(ctx) == nil
	}
	if l.link != nil {
		select {
		case <-l.link.Conn.Done():
		case <-ctx.Done():
			return false
		}
	}
	return await.UntilDue(ctx, func() (await.Wake, time.Duration, bool) {
		return await.Wake{p.over}, goneLook, !p.Endpoint.Unix() || p.IsOver() || p.reach() == shimclient.Refused
	}) == nil
}

// AwaitClosed waits until the process that is on its way out is gone, or stays after all, up to the cleanup timeout.
func (p *Process) AwaitClosed(ctx context.Context) error {
	ctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	err := await.Until(ctx, func() (await.Wake, bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return await.Wake{p.changed}, !p.closing || p.state == Ended
	})
	return errors.Wrap(err, "waiting for an earlier shim of the group to go")
}

// Process is the one that is leaving.
func (l *Leaving) Process() *Process { return l.p }

// WaitOrKill waits for the end of the process; false when the manager was closed before. One that takes longer than
// patience and whose pid is verified is ended: it has no member and can get none, so it has nothing to lose. A kill
// that the kernel does not get done is tried again, and said once.
func (l *Leaving) WaitOrKill(ctx context.Context, patience time.Duration) bool {
	p := l.p
	for said := false; ; {
		wctx, cancel := context.WithTimeout(ctx, patience)
		ended := p.awaitEnd(wctx)
		cancel()
		if ended {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		pid := p.Verified()
		if by, ok := l.licence(); ok && pid != (shimclient.ProcessID{}) {
			if !said {
				p.logger(ctx).Error("shim does not end after its shutdown, ending it")
			}
			said = true
			p.Kill(ctx, by)
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

// escalateWhenDue ends a process that has been silent for longer than config allows, connected or not, and returns
// when it is ended or has answered.
func (p *Process) escalateWhenDue() {
	said := false
	// At the end of the daemon untilEscalation says that it is over.
	_ = await.UntilDue(context.WithoutCancel(p.reg.ctx), func() (await.Wake, time.Duration, bool) {
		left, changed, over := p.untilEscalation()
		switch {
		case over:
			return await.Wake{}, 0, true
		case left <= 0 && p.escalate(&said):
			return await.Wake{}, 0, true
		case left <= 0:
			left = lastPause
		}
		return await.Wake{changed, p.reg.ctx.Done()}, left, false
	})
}

// untilEscalation is how long the process may stay silent yet; over when it is not silent any more.
func (p *Process) untilEscalation() (left time.Duration, changed <-chan struct{}, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != Unresponsive || p.reg.ctx.Err() != nil {
		p.escalates = false
		return 0, nil, true
	}
	return p.reg.config.EscalateAfter - time.Since(p.since), p.changed, false
}

// escalate ends a shim that has been silent for longer than config allows, which by default it may be for ever. Its
// stacks are in the log before that: runc's shim, and those made with containerd's package, dump them at SIGUSR1.
// True when it was ended. One that could not be is tried again, without what the first attempt has said and asked for.
func (p *Process) escalate(said *bool) bool {
	pid := p.Verified()
	if pid == (shimclient.ProcessID{}) {
		return false
	}
	if !*said {
		*said = true
		p.logger(p.reg.ctx).Errorf("shim has not answered for %s, ending it and its containers, as configured",
			p.reg.config.EscalateAfter)
		if !p.dumpStacks(pid) {
			return false
		}
	}
	by, ok := p.overdue()
	return ok && p.Kill(p.reg.ctx, by) // else it was woken by the signal, or by chance
}

// dumpStacks has a shim write its stacks; false when the daemon has ended before it can have done so.
func (p *Process) dumpStacks(pid shimclient.ProcessID) bool {
	if err := pid.DumpStacks(); err != nil {
		p.logger(p.reg.ctx).WithError(err).Warn("cannot make the shim dump its stacks")
		return true
	}
	return await.Sleep(p.reg.ctx, dumpTime)
}
