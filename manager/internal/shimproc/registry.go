// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sync/semaphore"

	"github.com/shimyard/shimyard/shimclient"
)

// dialsAtOnce bounds the connects to shims at a time. They wait for other processes, not for a CPU.
const dialsAtOnce = 64

// Config is what shim processes need of the daemon that they are in.
type Config struct {
	// Context is the life of what goes on in the background.
	Context context.Context
	// Spawn runs f in a goroutine; the channel is closed when f has returned.
	Spawn func(f func()) <-chan struct{}
	// Begin runs f in the background, at once or when it is known of all processes who is behind them.
	Begin func(f func())
	// Urge is called when a call waits for a connection, so for what Begin waits for.
	Urge func()
	// Deadlines of the calls to shims of a binary; of the zero Binary, where it is not known.
	Deadlines func(shimclient.Binary) shimclient.Deadlines
	// EscalateAfter is how long a shim may be silent before it is ended, its containers with it; 0 is for ever.
	EscalateAfter time.Duration
	// OnDistrust is called, with no lock held, when a process has not done as it should: it is silent, or its
	// connection is lost.
	OnDistrust func(*Process)
	// OnDied is called, with no lock held, for each member of a process that is proven dead.
	OnDied func(Member)
	// OnEnd is called, with no lock held, once for each process: it is dead, or the daemon has no use for it any more.
	OnEnd func(*Process)
}

// Registry has the shim processes of a daemon, by their addresses. Safe for concurrent use.
type Registry struct {
	config Config
	ctx    context.Context
	dials  *semaphore.Weighted

	// mu guards processes. A process's lock may be taken under it.
	mu sync.Mutex
	// +checklocks:mu
	processes map[string]*Process
}

// NewRegistry makes one without processes.
func NewRegistry(c Config) *Registry {
	return &Registry{
		config: c, ctx: c.Context, dials: semaphore.NewWeighted(dialsAtOnce), processes: make(map[string]*Process),
	}
}

// Attach puts a member behind the process at an endpoint, making that where it is new; a new one starts to connect at
// once. It fails when the process at that address is dead or on its way out, and returns that process then. Every
// member gets its process here: launched, joined or restored.
//
// An address says which process it is only as long as that keeps it: another may have taken the name since. So a shim
// that has just been launched is not the one of before whose pid is gone, or whose socket was removed; a member whose
// recorded shim is gone is not served by the one of now: it gets a process of its own, which is found dead; and
// members with different shims on record are behind different processes.
func (r *Registry) Attach(m Member, ep shimclient.Endpoint, from Origin) (p *Process, created bool, err error) {
	gone := from.Pid != (shimclient.ProcessID{}) && !from.Pid.Alive()
	past := r.past(ep, from)
	r.mu.Lock()
	if !gone {
		p = r.processForLocked(ep, from, past)
	}
	if created = p == nil; created {
		p = newProcess(r, ep)
	}
	if err = p.Join(m, from); err == nil && created && !gone {
		r.enterLocked(p)
	}
	r.mu.Unlock()
	if err != nil {
		return p, false, err
	}
	if created {
		r.config.Begin(p.run)
	}
	return p, created, nil
}

// past is the process of before at the address of one that has just been launched; nil for none.
func (r *Registry) past(ep shimclient.Endpoint, from Origin) *Process {
	if p := r.At(ep); p != nil && from.Launched && p.IsGone() {
		return p
	}
	return nil
}

// processForLocked is the known process at an endpoint that a member comes to; nil when it is another than those.
// past is none of them.
//
// +checklocks:r.mu
func (r *Registry) processForLocked(ep shimclient.Endpoint, from Origin, past *Process) *Process {
	p := r.processes[ep.String()]
	switch {
	case p == nil, from.Anew, p == past:
		return nil
	case p.isOther(from.Pid):
		return r.processes[sideName(ep, from.Pid)]
	}
	return p
}

// enterLocked puts a process into the map. One that had its address goes aside: neither is taken for what listens there
// before it has said so.
//
// +checklocks:r.mu
func (r *Registry) enterLocked(p *Process) {
	if old := r.processes[p.name]; old != nil {
		old.name = sideName(old.Endpoint, old.Verified())
		r.processes[old.name] = old
		old.contest()
		p.contest()
	}
	r.processes[p.name] = p
}

// sideName is the name of a process that does not have its address for itself.
func sideName(ep shimclient.Endpoint, pid shimclient.ProcessID) string {
	return fmt.Sprintf("%s of process %d, begun at %d", ep, pid.Pid, pid.StartTime)
}

// StartedAnew tells whether what a `start` has answered with is another process than the known one whose address that
// is: the socket of a living shim was removed, and its group's next shim has made a new one. It must not be taken for
// either on a guess, since then the other one is lost: an error means that it could not be told.
func (r *Registry) StartedAnew(ctx context.Context, ep shimclient.Endpoint) (bool, error) {
	p := r.At(ep)
	if p == nil || !p.Verified().Alive() {
		return false, nil
	}
	conn, err := shimclient.Dial(ctx, ep, p.limits())
	if err != nil {
		return false, errors.Wrapf(err, "cannot connect to the shim at %s", ep)
	}
	defer conn.Close()
	err = p.recognize(ctx, conn)
	if errors.Is(err, ErrStranger) {
		return true, nil
	}
	return false, errors.Wrapf(err, "cannot tell which shim listens at %s", ep)
}

// AttachLost puts a member behind a process whose address is not known, which is watched from now on. Members with the
// same name for it share one. traced: its launch is on record, so that no process of that means that it has ended.
func (r *Registry) AttachLost(m Member, name string, why error, traced bool, from Origin) *Process {
	ep := shimclient.Endpoint{Address: "unknown address of " + name}
	r.mu.Lock()
	p := r.processes[ep.String()]
	created := p == nil
	if created {
		p = newProcess(r, ep)
		p.noAddress = why
		r.processes[p.name] = p
	}
	p.mu.Lock()
	if created {
		p.pid = from.Pid
	}
	p.launched, p.traced = p.launched || from.Launched, p.traced || traced
	p.enterLocked(m)
	p.mu.Unlock()
	r.mu.Unlock()
	if created {
		p.OnUnreachable()
		r.config.Begin(p.run)
	}
	return p
}

// AttachKept makes the process at an endpoint the keeper's. created: it was not known, and is connected to from now
// on. With fresh that is to be so: a known one that has answered to a launch is not the keeper's. Errors:
// FailedPrecondition when it is not the keeper's to have.
func (r *Registry) AttachKept(k Keeper, ep shimclient.Endpoint, from KeptFacts, fresh bool) (created bool, err error) {
	r.mu.Lock()
	p := r.processes[ep.String()]
	if p == nil {
		p, created = newProcess(r, ep), true
		r.processes[p.name] = p
	}
	r.mu.Unlock()
	if fresh && !created {
		return false, errNotOurs(p)
	}
	if err := p.KeepFor(k, from); err != nil {
		return false, err
	}
	if created {
		r.config.Begin(p.run)
	}
	return created, nil
}

// At is the process that is known at an endpoint; nil when there is none.
func (r *Registry) At(ep shimclient.Endpoint) *Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.processes[ep.String()]
}

// All are the processes at this moment.
func (r *Registry) All() []*Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.processes))
}

// drop takes p out of the map, if it is still there.
func (r *Registry) drop(p *Process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.processes[p.name] == p {
		delete(r.processes, p.name)
	}
}
