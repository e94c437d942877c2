// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"google.golang.org/grpc/status"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// run is the goroutine of the process: it connects, watches the connection, and connects again, until the process is
// dead or released. When the manager is closed it returns and leaves the connection to the calls on it.
func (p *Process) run() {
	var lost time.Time // when the connection was; zero for the first
	for again := false; ; again = true {
		conn := p.connect()
		if again {
			p.reportAgain(conn, lost)
		}
		if conn == nil {
			return
		}
		ctx, cancel := context.WithCancel(p.reg.ctx)
		var gone <-chan struct{}
		if again {
			gone = p.watchPid(ctx)
		}
		over := false
		select {
		case <-conn.Done():
			_ = conn.Close() // a lost connection still has goroutines of its library's
			p.OnLost()
		case <-gone:
			_ = conn.Close()
			p.OnLost()
		case <-p.over:
			_ = conn.Close()
			over = true
		case <-p.reg.ctx.Done():
			over = true
		}
		cancel()
		if over {
			return
		}
		lost = time.Now()
	}
}

// reportAgain counts, and logs, what became of a connection that was lost: another one, or nil. A death has a line of
// its own, as has the answer of a shim that was silent meanwhile.
func (p *Process) reportAgain(conn *shimclient.Conn, lost time.Time) {
	switch {
	case conn == nil && p.IsDead():
		metrics.Reconnected("dead")
	case conn != nil:
		metrics.Reconnected("connected")
		if _, st, _ := p.Watch(); st == Connected {
			p.logger(p.reg.ctx).WithField("after", time.Since(lost).Round(time.Millisecond)).
				Info("the connection to the shim was lost, and is back")
		}
	}
}

// watchPid returns what is closed when the verified pid is gone; nil when there is none. A shim that dies loses its
// connections before its pid is gone, and another process may listen at its address by then: a connection that
// follows another is not taken for its life.
func (p *Process) watchPid(ctx context.Context) <-chan struct{} {
	pid := p.Verified()
	if (pid == shimclient.ProcessID{}) {
		return nil
	}
	gone := make(chan struct{})
	p.spawn(func() {
		if pid.Wait(ctx) == nil {
			close(gone)
		}
	})
	return gone
}

// connect dials until it succeeds; nil when the process is dead or released, or the manager closed.
func (p *Process) connect() (conn *shimclient.Conn) {
	from := time.Now()
	pause := firstPause
	var silence *time.Timer
	defer func() {
		if silence != nil {
			silence.Stop()
		}
	}()
	begun := func() {
		if silence == nil {
			silence = time.AfterFunc(p.limits()["Connect"], p.OnUnreachable)
		}
	}
	// At the end of the daemon the error of the last attempt has told nothing new.
	_ = await.UntilDue(p.reg.ctx, func() (await.Wake, time.Duration, bool) {
		var err error
		conn, err = p.dial(begun)
		if err == nil || p.reg.ctx.Err() != nil || p.IsOver() {
			return await.Wake{}, 0, true
		}
		p.failed(err)
		if isLocalShortage(err) {
			from = time.Now() // says nothing of the shim
			p.excuse()
		}
		if proof := p.proofOfDeath(from); proof != "" {
			p.die(proof)
			return await.Wake{}, 0, true
		}
		again := pause
		pause = min(2*pause, lastPause)
		return await.Wake{p.over}, again, false
	})
	return conn
}

// dial makes one attempt to connect. begun is called when its turn has come.
func (p *Process) dial(begun func()) (*shimclient.Conn, error) {
	if p.IsGone() {
		return nil, ErrDead
	}
	if p.noAddress != nil {
		return nil, p.noAddress
	}
	if err := p.reg.dials.Acquire(p.reg.ctx, 1); err != nil {
		return nil, errors.Wrap(err, "waiting for a turn to connect")
	}
	begun()
	ctx, cancel := timeout.WithContext(p.reg.ctx, TimeoutLoad)
	defer cancel()
	conn, err := shimclient.Dial(ctx, p.Endpoint, p.limits())
	p.reg.dials.Release(1)
	if err != nil {
		return nil, err
	}
	conn.Observe(observe)
	if err := p.admit(ctx, conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// admit takes a new connection into use, if it leads to the process.
func (p *Process) admit(ctx context.Context, conn *shimclient.Conn) error {
	if p.mayBeAnother(conn) {
		if err := p.recognize(ctx, conn); err != nil {
			return err
		}
	}
	return p.OnConnected(conn)
}

// mayBeAnother tells whether a connection may lead to another process than the one whose pid is verified: the first
// one, if several are known to have had its address, and each later one to another socket. The first one of a process
// that has its address for itself is held against the record with what it answers, see the confirmation of a guessed
// address.
func (p *Process) mayBeAnother(conn *shimclient.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid == (shimclient.ProcessID{}) {
		return false
	}
	if p.listener == 0 {
		return p.contested
	}
	return conn.Listener() != p.listener
}

// recognize asks on a connection that may lead to another process for the pid of the shim there. Errors: ErrStranger
// when that is not the verified one; any other decides nothing.
func (p *Process) recognize(ctx context.Context, conn *shimclient.Conn) error {
	p.mu.Lock()
	pid, same := p.pid, p.listener != 0 && conn.Listener() == p.listener
	p.mu.Unlock()
	if same {
		return nil
	}
	task, err := conn.Task(p.TaskVersion())
	if err != nil {
		return err
	}
	// A silent stranger does not hold up the news that the process has ended.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.spawn(func() {
		if pid.Wait(ctx) == nil {
			cancel()
		}
	})
	r, err := task.Connect(ctx, &taskapi.ConnectRequest{ID: p.anyID()})
	switch {
	case err != nil:
		return errors.Wrap(err, "what listens there does not say whether it is the shim")
	case int(r.ShimPid) != pid.Pid:
		return ErrStranger
	}
	return nil
}

// OnConnected: there is a connection. The kernel accepts it for a stopped process too, and one that was silent has to
// answer first.
func (p *Process) OnConnected(conn *shimclient.Conn) error {
	probes, err := p.setLink(conn)
	if probes {
		p.spawn(p.probe)
	}
	return err
}

// setLink makes calls go out on a new connection. probes tells the caller to ask whether they are answered.
func (p *Process) setLink(conn *shimclient.Conn) (probes bool, err error) {
	if p.IsGone() {
		return false, ErrDead // what accepts here now is another process
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == Ended {
		return false, ErrDead
	}
	task, err := conn.Task(p.version)
	if err != nil {
		return false, err
	}
	p.link = &Link{Conn: conn, Task: task}
	p.listener = conn.Listener()
	p.failure = nil
	if p.state != Unresponsive {
		p.toLocked(Connected)
		return false, nil
	}
	p.wakeLocked()
	probes = !p.probing
	p.probing = true
	return probes, nil
}

// failed keeps what the last connect failed with, for a client that asks.
func (p *Process) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failure, p.failedAt = err, time.Now().UTC()
}

// OnLost: the connection is gone. That alone is not death, and no answer either.
func (p *Process) OnLost() {
	p.reg.config.OnDistrust(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.link = nil
	if p.state == Unresponsive {
		p.wakeLocked()
		return
	}
	p.toLocked(Connecting)
}

// downgradeFor swaps the client for one of version 2 when the shim serves that and not the version it was told to: a
// running group of containerd 1.7 whose binary was upgraded answers so, since the new binary tells version 3 for the
// old process. The link that gave the unimplemented answer is named, so that one swap serves all who saw it. False
// when version 2 is no better.
func (p *Process) downgradeFor(ctx context.Context, seen *Link) bool {
	p.mu.Lock()
	l := p.link
	p.mu.Unlock()
	if l == nil {
		return false
	}
	if l.Task.Version() < seen.Task.Version() {
		return true
	}
	task, err := l.Conn.Task(2)
	if err != nil {
		return false
	}
	// One method may be missing in either version; the service as a whole answers Connect only in the right one.
	if _, err := l.Task.Connect(ctx, &taskapi.ConnectRequest{ID: p.anyID()}); !errdefs.IsNotImplemented(err) {
		return false
	}
	if _, err := task.Connect(ctx, &taskapi.ConnectRequest{ID: p.anyID()}); errdefs.IsNotImplemented(err) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link == l {
		p.version = 2
		p.link = &Link{Conn: l.Conn, Task: task}
		log.G(ctx).WithField("address", p.Endpoint).
			Info("shim serves version 2 of the Task API, not the version it told")
	}
	return true
}

// observe counts a call to a shim.
func observe(method string, err error, took time.Duration) {
	if strings.HasPrefix(method, "Wait") {
		return
	}
	if errors.Is(err, shimclient.ErrNoAnswer) {
		metrics.DeadlinePassed(method)
	}
	metrics.RPC(method, codeOf(err), took)
}

func codeOf(err error) string {
	if err == nil {
		return "OK"
	}
	return status.Code(errgrpc.ToGRPC(err)).String()
}
