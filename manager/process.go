// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// processState is what is known of the way to a shim process.
type processState int

const (
	connecting   processState = iota // not yet connected, or the connection was lost
	connected                        // calls go through
	unresponsive                     // two calls in a row, the second a Connect, were not answered, or there is no connection for as long
	ended                            // proven dead, or released by its last instance
)

const (
	firstPause = 5 * time.Millisecond // between attempts to connect
	lastPause  = time.Second
	dumpTime   = time.Second            // for a shim to write its stacks
	probePause = 500 * time.Millisecond // for a probe of an unresponsive shim at least; each has its own deadline, too
	anewRounds = 30                     // probes between two on a connection of their own, after the first few
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
	name     string // in the manager's map, and guarded by the manager's lock: the endpoint, unless another process has that
	// over is closed when the process is proven dead or was released by its last instance.
	over chan struct{}

	// noAddress says why the address is not known; nil when it is.
	noAddress error

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
	listener  int           // who made the socket listen that it was reached by; 0 when that is not known
	contested bool          // another process has, or had, its address
	link      *link
	pid       shimclient.ProcessID // verified; zero when there is none
	upAt      uint64               // when it ran and had no task yet, in clock ticks since boot; 0 when that is not known
	died      bool
	failure   error // of the last connect, while there is no connection
	failedAt  time.Time
	traced    bool // its launch is on record, so that no process of that means that it has ended; only for one without an address
	probing   bool
	escalates bool // a goroutine waits for the time to end it
	instances map[*Instance]struct{}
	deadlines shimclient.Deadlines // of its runtime; nil before anything is behind it
	// tokens and dirs are the launches and bundles by which the process is found: of those who may have started it, for good, and of
	// those who joined it, for as long as they are behind it.
	tokens map[string]struct{}
	dirs   map[string]struct{}
	log    *shimclient.Log
	warm   *warmShim // nil for one that was started for one instance
}

// origin is what an instance knows of its process before that is connected.
type origin struct {
	launched bool
	pid      shimclient.ProcessID // verified by an earlier daemon
	answered uint64               // as that daemon has recorded it
	// group is the instance whose shim is joined; "" where the spec names the group.
	group string
	// anew: another process than the known one at its address.
	anew bool
	// owned: the pool gave the process to the instance, or it was the instance's before this daemon began.
	owned bool
}

func newProcess(m *ShimManager, ep shimclient.Endpoint) *Process {
	return &Process{
		m: m, endpoint: ep, name: ep.String(), version: ep.Version,
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
	case p.closing, p.warm != nil && !from.owned && !p.servesGroupLocked(i, from.group):
		return errClosing
	}
	p.launched = p.launched || from.launched
	if p.pid == (shimclient.ProcessID{}) {
		p.pid = from.pid
	}
	if p.upAt == 0 {
		p.upAt = from.answered
	}
	p.enterLocked(i)
	return nil
}

// enterLocked puts an instance behind the process.
func (p *Process) enterLocked(i *Instance) {
	p.instances[i] = struct{}{}
	i.mu.Lock() // order: process before instance, everywhere
	defer i.mu.Unlock()
	i.proc = p
	if token := i.ledger.passageLocked().token(); token != "" {
		p.tokens[token] = struct{}{}
	}
	if p.deadlines == nil {
		p.deadlines = p.m.config.deadlines(i.binary)
	}
	if i.bundle != nil {
		p.dirs[i.bundle.Path] = struct{}{}
	}
}

// removeLocked takes an instance out, and its traces with it if another one has started the process: that serves one container after the
// other for as long as its pod, or a warm shim, lives. i is nil for a process that is the pool's alone.
func (p *Process) removeLocked(i *Instance) {
	delete(p.instances, i)
	if i == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	way := i.ledger.passageLocked()
	if !way.joined {
		return
	}
	delete(p.tokens, way.token())
	if i.bundle != nil {
		delete(p.dirs, i.bundle.Path)
	}
}

// servesGroupLocked tells whether the process serves the instance that i wants to be served with. A warm shim may be another's by the
// time that somebody comes with its address.
func (p *Process) servesGroupLocked(i *Instance, group string) bool {
	for o := range p.instances {
		if o.namespace == i.namespace && (o.id == group || slices.Contains(i.groups, o.id)) {
			return true
		}
	}
	return false
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
	p.removeLocked(i)
	if len(p.instances) == 0 {
		p.closing = true
		return true
	}
	return false
}

// remove takes an instance out of a process that goes on without any. left is how many are still in it.
func (p *Process) remove(i *Instance) (left int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeLocked(i)
	return len(p.instances)
}

// stay undoes a leave: the process could not be shut down, its last instance is to be deleted again.
func (p *Process) stay(i *Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != ended {
		p.closing = false
		p.enterLocked(i)
		p.wakeLocked()
	}
}

// taskVersion is the version of the Task API that is spoken.
func (p *Process) taskVersion() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.version
}

// current tells whether what the process says need not be asked for: it speaks version 3, is connected, and not suspected of being silent.
func (p *Process) current() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.version >= sandboxVersion && p.state == connected && !p.probing
}

// limits are the deadlines of calls to the process.
func (p *Process) limits() shimclient.Deadlines {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deadlines == nil {
		return p.m.config.Deadlines
	}
	return p.deadlines
}

// dead tells whether the process is proven dead.
func (p *Process) dead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.died
}

func (p *Process) setLog(c *shimclient.Log) {
	p.mu.Lock()
	if p.state == ended || p.log != nil {
		p.mu.Unlock()
		_ = c.Close()
		return
	}
	p.log = c
	p.mu.Unlock()
}

// logAs makes what the shim logs from now on that of an id.
func (p *Process) logAs(namespace, id string) {
	p.mu.Lock()
	c := p.log
	p.mu.Unlock()
	if c != nil {
		c.SetFields(log.Fields{"id": id, "namespace": namespace})
	}
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
// call gets the link if there is one, one that only asks an error at once, and one that changes something waits too: a shim that was
// merely slow must not cost the start of a container.
func (p *Process) use(ctx context.Context, mode callMode) (*link, error) {
	l, st, changed := p.snapshot()
	if p.noAddress != nil && st != ended {
		return nil, errLost(p.noAddress)
	}
	if st == connected || st == unresponsive && mode == forced && l != nil {
		return l, nil
	}
	p.m.urge()
	wctx, cancel := timeout.WithContext(ctx, TimeoutLoad)
	defer cancel()
	for {
		switch {
		case st == connected, st == unresponsive && mode == forced && l != nil:
			return l, nil
		case st == unresponsive && mode == repeatable:
			return nil, p.unavailable()
		case st == ended:
			return nil, errShimDead
		}
		select {
		case <-changed:
		case <-wctx.Done():
			if err := ctx.Err(); err != nil {
				return nil, errors.Wrap(err, "waiting for the connection to the shim")
			}
			return nil, p.unavailable()
		}
		l, st, changed = p.snapshot()
	}
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
	return errUnavailable(p.endpoint.String(), since, what)
}

// members are the instances at this moment.
func (p *Process) members() []*Instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.instances))
}
