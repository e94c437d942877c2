// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// Instance is the record that ties one (namespace, id) to a bundle and a shim process. Every event of its life is one method that
// takes the lock and switches on the state; effects follow outside the lock.
type Instance struct {
	m             *ShimManager
	kind          Kind
	namespace, id string
	layout        bundle.Layout

	// reading fills it, once, from what is on disk; nil for one that is new.
	reading func()

	// deletes lets one Delete of an exec at a time go to the shim, by the exec's id.
	deletes keyedLock

	// ledger has the record and the exits; it shares mu. creation and remains have locks of their own.
	ledger   *ledger
	creation creation
	remains  remains

	// mu guards all below.
	mu sync.Mutex
	lifecycle
	bundle  *bundle.Bundle
	binary  shimclient.Binary
	groups  []string // whose shim the container may be served by, if its runtime groups
	version int      // of the Task API that the shim answered with
	proc    *shimproc.Process
	loan
	recovery
}

// lifecycle is the state of an instance and what goes with it; Instance.toLocked alone changes it.
type lifecycle struct {
	state   state
	since   time.Time
	claimed state         // before deleting
	changed chan struct{} // closed and replaced at every transition
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

func newInstance(m *ShimManager, layout bundle.Layout, kind Kind, namespace, id string, st state) *Instance {
	i := &Instance{
		m: m, kind: kind, namespace: namespace, id: id, layout: layout,
		lifecycle: lifecycle{state: st, claimed: running, since: time.Now(), changed: make(chan struct{})},
	}
	i.ledger = newLedger(&i.mu, i, kind == KindTask)
	return i
}

func (i *Instance) key() key { return key{i.namespace, i.id} }

// read fills a restored instance from its bundle, unless that was done; it must come before anything is asked of the instance or told to it.
func (i *Instance) read() {
	if i.reading != nil {
		i.reading()
	}
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
func (i *Instance) watch() (state, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state, i.changed
}

// status returns the state and what cleaning could not remove yet.
func (i *Instance) status() (state, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, left := i.remains.whatIsLeft()
	return i.state, left
}

// process of the instance; nil before its launch and after its release.
func (i *Instance) process() *shimproc.Process {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.proc
}

// knowsExec tells whether a living task has the exec.
func (i *Instance) knowsExec(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state.listed() && i.ledger.execLocked(id) != nil
}

// spawn, later, sleep, writeTurn, daemonStart and recordBundleLocked are what the ledger needs of the instance, see keeper.
func (i *Instance) spawn(f func()) { i.m.spawn(f) }

func (i *Instance) later(d time.Duration, f func()) {
	// Not at once even for d = 0: the manager's lock may not be taken under the instance's.
	time.AfterFunc(d, func() { i.m.spawn(f) })
}

func (i *Instance) sleep(d time.Duration) bool { return i.m.sleep(d) }

func (i *Instance) writeTurn() (end func()) {
	// It cannot fail: records are written even while the manager is closed.
	_ = i.m.saves.Acquire(context.Background(), 1)
	return func() { i.m.saves.Release(1) }
}

func (i *Instance) daemonStart() time.Time { return i.m.started }

func (i *Instance) recordBundleLocked() *bundle.Bundle { return i.bundle }

// cleanUpIfDead sees to a death that came while the state was one in which somebody else had to: it is asked after every return to
// running. True when the instance is dead.
func (i *Instance) cleanUpIfDead() bool {
	p := i.process()
	if p == nil || !p.IsDead() {
		return false
	}
	if i.onDeath() {
		i.m.spawn(i.cleanUpDead)
	}
	return true
}
