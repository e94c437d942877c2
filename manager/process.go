// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// processState is what is known of the way to a shim process.
type processState int

const (
	connecting   processState = iota // not yet connected, or the connection was lost
	connected                        // calls go through
	unresponsive                     // connected, but two calls in a row, the second a Connect, were not answered
	ended                            // proven dead, or released by its last instance
)

const (
	firstPause = 5 * time.Millisecond // between attempts to connect
	lastPause  = time.Second
	dumpTime   = time.Second            // for a shim to write its stacks
	probePause = 500 * time.Millisecond // between probes of an unresponsive shim, each waits for its own deadline too
)

// link is one connection with its Task client; immutable, replaced as a whole.
type link struct {
	conn *shimclient.Conn
	task *shimclient.Task
}

// Process is one shim process: an address that serves the Task API, however many instances are behind it.
type Process struct {
	m        *ShimManager
	endpoint shimclient.Endpoint
	// over is closed when the process is proven dead or was released by its last instance.
	over chan struct{}

	tries atomic.Int32 // to verify the pid after the launch

	// mu guards all below.
	mu sync.Mutex
	// launched tells that this machine's daemon, this one or an earlier one, started it: only then does a refused connect mean
	// anything. False for the address that a sandboxer behind a proxy plugin hands over.
	launched  bool
	state     processState
	since     time.Time
	changed   chan struct{} // closed and replaced at every transition
	closing   bool          // the last instance is leaving: nobody may join
	version   int           // of the Task API in use
	link      *link
	pid       shimclient.ProcessID // verified; zero when there is none
	died      bool
	probing   bool
	instances map[*Instance]struct{}
	tokens    map[string]struct{} // of the launches of all instances that ever were behind it
	dirs      map[string]struct{} // bundles of those that it may have been started in
	log       io.Closer
}

// origin is what an instance knows of its process before that is connected.
type origin struct {
	launched bool
	pid      shimclient.ProcessID // verified by an earlier daemon
}

func newProcess(m *ShimManager, ep shimclient.Endpoint) *Process {
	return &Process{
		m: m, endpoint: ep, version: ep.Version,
		over: make(chan struct{}), since: time.Now(), changed: make(chan struct{}),
		instances: make(map[*Instance]struct{}), tokens: make(map[string]struct{}), dirs: make(map[string]struct{}),
	}
}

// join adds an instance; it fails when the process is dead or on its way out.
func (p *Process) join(i *Instance, from origin) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.state == ended:
		return errShimDead
	case p.closing:
		return errClosing
	}
	p.launched = p.launched || from.launched
	if !p.pid.Alive() && from.pid.Alive() || p.pid == (shimclient.ProcessID{}) {
		p.pid = from.pid
	}
	p.instances[i] = struct{}{}
	i.mu.Lock() // order: process before instance, everywhere
	i.proc = p
	if i.rec.Launch != nil {
		p.tokens[i.rec.Launch.Token] = struct{}{}
	}
	if i.bundle != nil {
		p.dirs[i.bundle.Path] = struct{}{}
	}
	i.mu.Unlock()
	return nil
}

// traces are the tokens and directories by which processes of this shim can be found.
func (p *Process) traces() (tokens, dirs []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.tokens)), slices.Collect(maps.Keys(p.dirs))
}

// leave takes an instance out. last tells that nobody is left; from then on nobody may join.
func (p *Process) leave(i *Instance) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.instances, i)
	if len(p.instances) == 0 {
		p.closing = true
		return true
	}
	return false
}

// stay undoes a leave: the process could not be shut down, its last instance is to be deleted again.
func (p *Process) stay(i *Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != ended {
		p.closing = false
		p.instances[i] = struct{}{}
		p.wakeLocked()
	}
}

// away waits until the process that is on its way out is gone, or stays after all.
func (p *Process) away(ctx context.Context) error {
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

// taskVersion is the version of the Task API that is spoken.
func (p *Process) taskVersion() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.version
}

// dead tells whether the process is proven dead.
func (p *Process) dead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.died
}

func (p *Process) setLog(c io.Closer) {
	p.mu.Lock()
	if p.state == ended || p.log != nil {
		p.mu.Unlock()
		_ = c.Close()
		return
	}
	p.log = c
	p.mu.Unlock()
}

func (p *Process) toLocked(st processState) {
	if p.state == st || p.state == ended {
		return
	}
	p.state, p.since = st, time.Now()
	p.wakeLocked()
}

func (p *Process) wakeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// snapshot returns the link (nil while there is none), the state and a channel that is closed when they change.
func (p *Process) snapshot() (*link, processState, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link, p.state, p.changed
}

// use returns the link for a call. While there is none it waits for one, up to the load timeout. Of an unresponsive process a forced
// call gets the link, one that only asks an error at once, and one that changes something waits too: a shim that was merely slow must
// not cost the start of a container.
func (p *Process) use(ctx context.Context, mode callMode) (*link, error) {
	l, st, changed := p.snapshot()
	if st == connected || st == unresponsive && mode == forced {
		return l, nil
	}
	wctx, cancel := timeout.WithContext(ctx, TimeoutLoad)
	defer cancel()
	for {
		switch {
		case st == connected, st == unresponsive && mode == forced:
			return l, nil
		case st == unresponsive && mode == repeatable:
			return nil, p.unavailable(st)
		case st == ended:
			return nil, errShimDead
		}
		select {
		case <-changed:
		case <-wctx.Done():
			if err := ctx.Err(); err != nil {
				return nil, errors.Wrap(err, "waiting for the connection to the shim")
			}
			return nil, p.unavailable(st)
		}
		l, st, changed = p.snapshot()
	}
}

func (p *Process) unavailable(st processState) error {
	p.mu.Lock()
	since := p.since
	p.mu.Unlock()
	what := "cannot be reached"
	if st == unresponsive {
		what = "does not answer"
	}
	return errUnavailable(p.endpoint.String(), since, what)
}

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
	for {
		l, st, _ := p.snapshot()
		if l == nil || st == ended || p.m.ctx.Err() != nil {
			return
		}
		switch err := p.ask(p.m.ctx, l.task); {
		case errors.Is(err, shimclient.ErrConnectionLost), p.m.ctx.Err() != nil:
			return
		case !errors.Is(err, shimclient.ErrNoAnswer):
			p.answered(l)
			return
		}
		p.silent(l)
		if p.answersAnew() && errors.Is(p.ask(p.m.ctx, l.task), shimclient.ErrNoAnswer) {
			// The connection is out of step, not the shim: a new one is made as after any loss. The old one was asked once more since a shim
			// that has just woken answers on both, and the answers that are on their way must not be lost.
			log.G(p.m.ctx).WithField("address", p.endpoint).Warn("shim answers on a new connection and not on the old one, giving that up")
			_ = l.conn.Close()
			return
		}
		if !p.m.sleep(probePause) || p.escalate() {
			return
		}
	}
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

// anyID is the id of one of the instances, for calls that are about the process.
func (p *Process) anyID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.instances {
		return i.id
	}
	return ""
}

// verify asks the shim for its pid and checks it, once. A pid that cannot be verified (a VM's, another pid namespace's) stays unknown.
func (p *Process) verify(ctx context.Context, l *link, b shimclient.Binary, token string) {
	p.mu.Lock()
	known := p.pid != shimclient.ProcessID{}
	p.mu.Unlock()
	if known || !p.endpoint.Unix() {
		return
	}
	r, err := l.task.Connect(ctx, &taskapi.ConnectRequest{ID: p.anyID()})
	if err != nil || r.ShimPid == 0 {
		return
	}
	pid, err := shimclient.VerifyShim(int(r.ShimPid), b, token)
	if err != nil {
		log.G(ctx).WithError(err).WithField("pid", r.ShimPid).Debug("cannot verify the shim's pid")
		return
	}
	p.setPid(pid)
}

func (p *Process) setPid(pid shimclient.ProcessID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if (p.pid == shimclient.ProcessID{}) {
		p.pid = pid
	}
}

func (p *Process) verified() shimclient.ProcessID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// members are the instances at this moment.
func (p *Process) members() []*Instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.instances))
}

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
		if i.onDeath() {
			p.m.spawn(i.bury)
		}
	}
}

func (p *Process) isOver() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
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
	p.m.dropProcess(p)
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

// shutdown asks the process to go and waits until it has, each up to the shutdown timeout. A process that said yes and lingers is
// left to linger: it has nothing of ours any more.
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
