// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/progress"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// Instance is the record that ties one (namespace, id) to a bundle and a shim process. Every event of its life is one
// method that takes the lock and switches on the state; effects follow outside the lock.
type Instance struct {
	m         *ShimManager
	kind      life.Kind
	namespace string
	id        string
	layout    bundle.Layout

	// reading fills it, once, from what is on disk; nil for one that is new.
	reading func()

	// request is what its create asks for; nil once that has ended. The goroutine of the create alone uses it.
	request *createRequest

	// deletes lets one Delete of an exec at a time go to the shim, by the exec's id.
	deletes await.KeyedLock

	// ledger has the record, the exits and who was told. It, creation and remains have locks of their own.
	ledger   *ledger.Ledger
	creation progress.Creation
	remains  progress.Remains

	// mu guards all below.
	mu sync.Mutex
	// +checklocks:mu
	lifecycle
	// +checklocks:mu
	bundle *bundle.Bundle
	// +checklocks:mu
	service
	// +checklocks:mu
	loan
	// +checklocks:mu
	recovery
}

// lifecycle is the state of an instance and what goes with it; Instance.toLocked alone changes it.
type lifecycle struct {
	state   life.State
	since   time.Time
	claimed life.State    // before deleting
	changed chan struct{} // closed and replaced at every transition
}

// service is what serves an instance.
type service struct {
	binary  shimclient.Binary
	groups  []string // whose shim the container may be served by, if its runtime groups
	version int      // of the Task API that the shim answered with
	proc    *shimproc.Process
}

// loan is what an instance has of the warm shim that serves it.
type loan struct {
	house   *warmShim // whose directory the bundle is; nil where the bundle is the instance's own
	returns bool      // its process goes back to the pool when the bundle is removed
}

// recovery is what is not settled yet of an instance that an earlier daemon left.
type recovery struct {
	found   bool // at the start of the daemon, and it is not decided yet what becomes of it
	guessed bool // the address of the process is a guess, which the process has not confirmed
	mend    bool // the bundle does not say how to reach the shim, and is to again
}

func newInstance(m *ShimManager, layout bundle.Layout, kind life.Kind, namespace, id string, st life.State) *Instance {
	i := &Instance{
		m: m, kind: kind, namespace: namespace, id: id, layout: layout,
		lifecycle: lifecycle{state: st, claimed: life.Running, since: time.Now(), changed: make(chan struct{})},
	}
	i.ledger = ledger.New(m.desk, keeper{i}, kind == life.Task)
	return i
}

func (i *Instance) key() key { return key{i.namespace, i.id} }

// read fills a restored instance from its bundle, unless that was done; it must come before anything is asked of the
// instance or told to it.
func (i *Instance) read() {
	if i.reading != nil {
		i.reading()
	}
}

// logger is for lines about an instance: they name it, its runtime, and its shim's pid if that is verified. Not for a
// caller that holds a lock.
func (i *Instance) logger(ctx context.Context) *log.Entry {
	fields := log.Fields{"namespace": i.namespace, "id": i.id}
	if name := cmp.Or(i.startedFrom().Runtime, i.ledger.Passage().Runtime); name != "" {
		fields["runtime"] = name
	}
	if pid := i.shimPid(); pid != (shimclient.ProcessID{}) {
		fields["shim_pid"] = pid.Pid
	}
	return log.G(ctx).WithFields(fields)
}

// context is the manager's context with the instance's namespace and log fields, for work that no caller waits for.
func (i *Instance) context() context.Context {
	return i.scope(i.m.ctx)
}

// scope adds the instance's namespace and log fields to a context.
func (i *Instance) scope(ctx context.Context) context.Context {
	ctx = namespaces.WithNamespace(ctx, i.namespace)
	return log.WithLogger(ctx, log.G(ctx).WithFields(log.Fields{"namespace": i.namespace, "id": i.id}))
}

// watch returns the state and a channel that is closed when it changes.
func (i *Instance) watch() (life.State, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state, i.changed
}

// status returns the state and what cleaning could not remove yet.
func (i *Instance) status() (life.State, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, left := i.remains.WhatIsLeft()
	return i.state, left
}

// process of the instance; nil before its launch and after its release.
func (i *Instance) process() *shimproc.Process {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.proc
}

// shimPid is the verified pid of the instance's process; zero when that is not known.
func (i *Instance) shimPid() shimclient.ProcessID {
	p := i.process()
	if p == nil {
		return shimclient.ProcessID{}
	}
	return p.Verified()
}

// home is the bundle; nil while there is none.
func (i *Instance) home() *bundle.Bundle {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.bundle
}

// startedFrom is the binary that the shim is, or was, started from.
func (i *Instance) startedFrom() shimclient.Binary {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.binary
}

// socketIDs are the ids under which a shim that may serve the container names its socket, if its runtime groups.
func (i *Instance) socketIDs() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.groups
}

// keeper is an instance as its ledger sees it.
type keeper struct{ i *Instance }

var _ ledger.Keeper = keeper{}

func (k keeper) Context() context.Context { return k.i.context() }

func (k keeper) Bundle() *bundle.Bundle { return k.i.home() }

// behind is an instance as its shim process sees it.
type behind struct{ i *Instance }

var _ shimproc.Member = behind{}

// enter makes p the instance's process.
func (b behind) Enter(p *shimproc.Process) shimproc.Facts {
	b.i.mu.Lock()
	defer b.i.mu.Unlock()
	b.i.proc = p
	return b.i.memberFactsLocked()
}

func (b behind) Facts() shimproc.Facts {
	b.i.mu.Lock()
	defer b.i.mu.Unlock()
	return b.i.memberFactsLocked()
}

// +checklocks:i.mu
func (i *Instance) memberFactsLocked() shimproc.Facts {
	way := i.ledger.Passage()
	f := shimproc.Facts{
		Namespace: i.namespace, ID: i.id, Groups: i.groups, Binary: i.binary, Token: way.Token(), Joined: way.Joined,
		Abandoned: i.state == life.Reaping && i.ledger.Fate().Abandoned,
	}
	if i.bundle != nil {
		f.Dir = i.bundle.Path
	}
	return f
}

func (b behind) Runs(id shimclient.ProcessID) bool { return b.i.ledger.Runs(id) }

func (b behind) Gone() bool { return b.i.ledger.InitGone() }

// instancesOf are the instances behind a process at this moment.
func instancesOf(p *shimproc.Process) []*Instance {
	members := p.Members()
	all := make([]*Instance, len(members))
	for n, m := range members {
		all[n] = m.(behind).i
	}
	return all
}

// recordEndpoint keeps how to reach the shim in the record too.
func (i *Instance) recordEndpoint(ep shimclient.Endpoint) {
	i.ledger.RecordEndpoint(ep)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.version = ep.Version
}

func (i *Instance) processDead() bool {
	p := i.process()
	return p == nil || p.IsDead()
}

// takenWarm tells whether a warm shim serves the instance.
func (i *Instance) takenWarm() bool {
	return i.ledger.Passage().Warm != ""
}

// silent tells whether the process is known not to answer.
func (i *Instance) silent() bool {
	p := i.process()
	if p == nil {
		return false
	}
	_, st, _ := p.Watch()
	return st != shimproc.Connected
}

// isUnresponsive tells whether the process is known to leave calls unanswered.
func (i *Instance) isUnresponsive() bool {
	p := i.process()
	if p == nil {
		return false
	}
	_, st, _ := p.Watch()
	return st == shimproc.Unresponsive
}

// moved is closed when the state of the process changes.
func (i *Instance) moved() <-chan struct{} {
	_, moved := i.link()
	return moved
}

// link of the instance's process, nil while there is none, and a channel that is closed when that changes.
func (i *Instance) link() (*shimproc.Link, <-chan struct{}) {
	p := i.process()
	if p == nil {
		return nil, nil
	}
	l, _, moved := p.Watch()
	return l, moved
}

// hasProcess tells whether a process lives, or may live, that looks like the instance's shim.
func (i *Instance) hasProcess() bool {
	var tokens, dirs []string
	way := i.ledger.Passage()
	if token := way.Token(); token != "" {
		tokens = append(tokens, token)
	}
	if b := i.home(); b != nil {
		dirs = append(dirs, b.Path)
	}
	is, err := shimproc.Found(i.m.ctx, tokens, dirs, func(id shimclient.ProcessID) bool {
		return shimproc.IsOfShimsAge(id, way.Answered(), i.ledger.Runs)
	})
	if errdefs.IsNotImplemented(err) {
		return false
	}
	if err != nil {
		i.logger(i.context()).WithError(err).Warn("cannot tell whether the shim lives, so it is taken to")
	}
	return is
}

// endpoint is what a sandbox's controller hands over for containers to join.
func (i *Instance) endpoint() (string, uint32) {
	p := i.process()
	if p == nil {
		return "", 0
	}
	return p.Endpoint.String(), uint32(p.Endpoint.Version)
}
