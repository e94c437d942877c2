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

	"github.com/shimyard/shimyard/shimclient"
)

// die: the process is proven dead. Each of its instances is buried on its own; after an orderly shutdown there is none.
func (p *Process) die(proof string) {
	p.mu.Lock()
	p.died = true
	if !p.closing {
		log.G(p.m.ctx).WithField("address", p.endpoint).Infof("shim is dead: %s", proof)
	}
	p.mu.Unlock()
	p.end()
	for _, i := range p.members() {
		i.buryIfDead()
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
	w := p.warm
	p.mu.Unlock()
	p.m.dropProcess(p)
	if w != nil {
		p.m.pool.ended(w)
	}
	if l != nil {
		_ = l.conn.Close()
	}
	if logs != nil {
		_ = logs.Close()
	}
}

// kill ends the process with SIGKILL and waits until it is proven dead, up to the cleanup timeout. For the caller to justify.
func (p *Process) kill(ctx context.Context) bool {
	ctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	pid := p.verified()
	if err := pid.Signal(syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("pid", pid.Pid).Error("cannot end the shim")
		return false
	}
	select {
	case <-p.over:
		return p.dead()
	case <-ctx.Done():
		return false
	}
}

// shutdown asks the process to go and waits until it has, each up to the shutdown timeout. A process that said yes may linger (lingers).
func (p *Process) shutdown(ctx context.Context, id string) error {
	ctx, cancel := timeout.WithContext(ctx, TimeoutShutdown)
	defer cancel()
	l, err := p.use(ctx, forced)
	if errors.Is(err, errShimDead) {
		return nil
	}
	if err != nil {
		return err
	}
	err = l.task.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	if err != nil && !errors.Is(err, shimclient.ErrConnectionLost) && !errdefs.IsNotFound(err) {
		return errors.Wrap(err, "cannot shut the shim down")
	}
	p.waitGone(ctx, l)
	return nil
}

// waitGone waits for the end of the process: by its pid where that is verified, else by the end of the connection l, nil when that
// has ended already.
func (p *Process) waitGone(ctx context.Context, l *link) {
	if pid := p.verified(); pid != (shimclient.ProcessID{}) {
		if err := pid.Wait(ctx); err == nil {
			return
		}
	} else if l == nil {
		return
	} else {
		select {
		case <-l.conn.Done():
			return
		case <-ctx.Done():
		}
	}
	log.G(ctx).WithField("address", p.endpoint).Warn("shim has said yes to its shutdown and still runs")
}

const (
	// lingerTime is how long a process may linger that has said yes to its shutdown, lingerPause is between two looks at it.
	lingerTime  = 30 * time.Second
	lingerPause = 50 * time.Millisecond
)

// errLingers is why an id is not free yet.
var errLingers = errors.New("the shim has said yes to its shutdown and still runs; it is waited for")

// lingers tells whether a process that was released is still there: the next `start` under its id would find its socket and join what is
// about to end.
func (p *Process) lingers() bool {
	if !p.isLaunched() {
		return false
	}
	if pid := p.verified(); pid != (shimclient.ProcessID{}) {
		return pid.Alive()
	}
	return p.endpoint.Unix() && p.reach() == shimclient.Reachable
}

// outlast waits until a process that was released is gone. One that does not go is ended in the end, where it is known which process it is:
// it has no task and has agreed to go. False when the manager was closed before.
func (p *Process) outlast() bool {
	for until := time.Now().Add(lingerTime); p.lingers(); {
		if !p.m.sleep(lingerPause) {
			return false
		}
		if time.Now().Before(until) {
			continue
		}
		pid := p.verified()
		log.G(p.m.ctx).WithField("address", p.endpoint).WithField("pid", pid.Pid).Warn("shim does not end after its shutdown, ending it")
		if (pid == shimclient.ProcessID{}) {
			return true
		}
		if err := pid.Signal(syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			log.G(p.m.ctx).WithError(err).Error("cannot end the shim")
		}
		until = time.Now().Add(lingerTime)
	}
	return true
}
