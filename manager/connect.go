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

// run is the goroutine of the process: it connects, watches the connection, and connects again, until the process is dead or
// released. When the manager is closed it returns and leaves the connection to those who wait on it.
func (p *Process) run() {
	for {
		conn := p.connect()
		if conn == nil {
			return
		}
		select {
		case <-conn.Done():
			_ = conn.Close() // a lost connection still has goroutines of its library's
			p.lost()
		case <-p.over:
			_ = conn.Close()
			return
		case <-p.m.ctx.Done():
			return
		}
	}
}

// connect dials until it succeeds; nil when the process is dead or released, or the manager closed.
func (p *Process) connect() *shimclient.Conn {
	from := time.Now()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		conn, err := p.dial()
		if err == nil {
			return conn
		}
		if p.m.ctx.Err() != nil || p.isOver() {
			return nil
		}
		if isLocalShortage(err) {
			from = time.Now() // says nothing of the shim
		}
		if proof := p.proofOfDeath(from); proof != "" {
			p.die(proof)
			return nil
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-p.over:
		case <-p.m.ctx.Done():
		}
		t.Stop()
	}
}

func (p *Process) dial() (*shimclient.Conn, error) {
	if err := p.m.dials.Acquire(p.m.ctx, 1); err != nil {
		return nil, errors.Wrap(err, "waiting for a turn to connect")
	}
	ctx, cancel := timeout.WithContext(p.m.ctx, TimeoutLoad)
	defer cancel()
	conn, err := shimclient.Dial(ctx, p.endpoint, p.m.config.Deadlines)
	p.m.dials.Release(1)
	if err != nil {
		return nil, err
	}
	if err := p.onConnected(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func (p *Process) onConnected(conn *shimclient.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == ended {
		return errShimDead
	}
	task, err := conn.Task(p.version)
	if err != nil {
		return err
	}
	p.link = &link{conn: conn, task: task}
	if p.pid != (shimclient.ProcessID{}) && !p.pid.Alive() {
		p.pid = shimclient.ProcessID{} // somebody serves here, so the recorded pid was another's
	}
	p.toLocked(connected)
	return nil
}

// lost: the connection is gone. That alone is not death.
func (p *Process) lost() {
	p.m.pool.distrust(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.link = nil
	p.toLocked(connecting)
}

// downgradeFor swaps the client for one of version 2 when the shim serves that and not the version it was told to: a running group of
// containerd 1.7 whose binary was upgraded answers so, since the new binary tells version 3 for the old process. The link that gave
// the unimplemented answer is named, so that one swap serves all who saw it. False when version 2 is no better.
func (p *Process) downgradeFor(ctx context.Context, seen *link) bool {
	p.mu.Lock()
	l := p.link
	p.mu.Unlock()
	if l == nil {
		return false
	}
	if l.task.Version() < seen.task.Version() {
		return true
	}
	task, err := l.conn.Task(2)
	if err != nil {
		return false
	}
	// One method may be missing in either version; the service as a whole answers Connect only in the right one.
	if _, err := l.task.Connect(ctx, &taskapi.ConnectRequest{ID: p.anyID()}); !errdefs.IsNotImplemented(err) {
		return false
	}
	if _, err := task.Connect(ctx, &taskapi.ConnectRequest{ID: p.anyID()}); errdefs.IsNotImplemented(err) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link == l {
		p.version = 2
		p.link = &link{conn: l.conn, task: task}
		log.G(ctx).WithField("address", p.endpoint).Info("shim serves version 2 of the Task API, not the version it told")
	}
	return true
}
