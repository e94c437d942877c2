// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
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
	mu      sync.Mutex
	state   state
	since   time.Time
	claimed state         // before deleting
	changed chan struct{} // closed and replaced at every transition
	bundle  *bundle.Bundle
	binary  shimclient.Binary
	groups  []string // whose shim the container may be served by, if its runtime groups
	version int      // of the Task API that the shim answered with
	proc    *Process
	found   bool      // at the start of the daemon, and it is not decided yet what becomes of it
	house   *warmShim // whose directory the bundle is; nil where the bundle is the instance's own
	returns bool      // its process goes back to the pool when the bundle is removed

	guessed bool // the address of the process is a guess, which the process has not confirmed
	mend    bool // the bundle does not say how to reach the shim, and is to again
}

func newInstance(m *ShimManager, layout bundle.Layout, kind Kind, namespace, id string, st state) *Instance {
	i := &Instance{
		m: m, kind: kind, namespace: namespace, id: id, layout: layout,
		state: st, claimed: running, since: time.Now(), changed: make(chan struct{}),
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
	left, _ := i.remains.whatIsLeft()
	return i.state, left
}

// process of the instance; nil before its launch and after its release.
func (i *Instance) process() *Process {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.proc
}

// toLocked changes the state and wakes all who watch it.
func (i *Instance) toLocked(st state) {
	if i.state == st || i.state == gone {
		return
	}
	i.observeRestoredLocked(st)
	i.state, i.since = st, time.Now()
	i.announceLocked()
}

// announceLocked wakes all who watch the instance.
func (i *Instance) announceLocked() {
	close(i.changed)
	i.changed = make(chan struct{})
}

func (i *Instance) announce() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.announceLocked()
}

func (i *Instance) to(st state) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.toLocked(st)
}

// onCreated: the shim has created the task, or the sandbox.
func (i *Instance) onCreated(pid uint32, io runtime.IO) {
	start, owned := i.judgePid(pid)
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case launching:
		i.toLocked(running)
		i.ledger.createdLocked(&bundle.TaskState{
			Pid: pid, PidStart: start, PidOwned: owned,
			Stdin: io.Stdin, Stdout: io.Stdout, Stderr: io.Stderr, Terminal: io.Terminal,
		})
	default:
		// Nobody else takes an instance out of launching before its creator is through.
	}
}

// onLaunchFailed: the create did not succeed. False when there is nothing to undo any more.
func (i *Instance) onLaunchFailed() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case launching:
		i.toLocked(reaping)
		return true
	default:
		return false
	}
}

// onAnswered: a restored instance's shim knows it.
func (i *Instance) onAnswered() {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case restoring:
		i.ledger.answeredLocked()
		i.toLocked(running)
	default:
		// Its shim died between the answer and now.
	}
}

// onUnknown: a restored instance's shim is well and has no such task. True: it is to be reaped.
func (i *Instance) onUnknown() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case restoring:
		i.toLocked(reaping)
		return true
	default:
		return false
	}
}

// onDeath: its shim process is proven dead. True: it is to be buried by the caller. In launching and deleting the create or the
// delete under way sees the death by itself; in the other states there is nothing that a shim could still do.
func (i *Instance) onDeath() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch i.state {
	case restoring, running:
		i.toLocked(dead)
		return true
	default:
		return false
	}
}

// onDelete: somebody wants it deleted. The state before tells the caller what to do: running, and it is his; any other, it is not. With
// force one is his, too, whose shim has not answered since the daemon's start.
func (i *Instance) onDelete(force bool) (before state, changed <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	before = i.state
	if before == running || before == restoring && force {
		i.claimed = before
		i.toLocked(deleting)
	}
	return before, i.changed
}

// onDeleteFailed: the delete did not succeed and may be tried again.
func (i *Instance) onDeleteFailed() {
	i.mu.Lock()
	again := false
	switch i.state {
	case deleting:
		i.toLocked(i.claimed)
		again = i.claimed == restoring
		i.ledger.replayLaterLocked()
	default:
		// Only who claimed it deletes it.
	}
	i.mu.Unlock()
	if again {
		i.m.spawn(i.takeOver)
	}
}

// buryIfDead sees to a death that came while the state was one in which somebody else had to: it is asked after every return to
// running. True when the instance is dead.
func (i *Instance) buryIfDead() bool {
	p := i.process()
	if p == nil || !p.dead() {
		return false
	}
	if i.onDeath() {
		i.m.spawn(i.bury)
	}
	return true
}

// knowsExec tells whether a living task has the exec.
func (i *Instance) knowsExec(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state.listed() && i.ledger.execLocked(id) != nil
}

// onExitEvent: the shim told an exit, of init ("") or of an exec.
func (i *Instance) onExitEvent(execID string, e bundle.Exit) {
	i.mu.Lock()
	ours := i.ledger.hearExitLocked(i.state, execID, e)
	i.mu.Unlock()
	if ours {
		i.ledger.saveSoon()
	}
}

// onDeleteEvent: the shim told that the task is deleted.
func (i *Instance) onDeleteEvent(pid uint32) {
	i.mu.Lock()
	ours := i.ledger.hearDeleteLocked(i.state, pid)
	i.mu.Unlock()
	if ours {
		i.ledger.saveSoon()
	}
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
