// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"sync"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// Instance is the record that ties one (namespace, id) to a bundle and a shim process. Every event of its life is one
// method that takes the lock and switches on the state; effects follow outside the lock.
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

// read fills a restored instance from its bundle, unless that was done; it must come before anything is asked of the
// instance or told to it.
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

// spawn, later, sleep, writeTurn, daemonStart and recordBundleLocked are what the ledger needs of the instance, see
// keeper.
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

// cleanUpIfDead sees to a death that came while the state was one in which another step had to: it is asked after
// every return to running. True when the instance is dead.
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

func (i *Instance) memberFactsLocked() shimproc.Facts {
	way := i.ledger.passageLocked()
	f := shimproc.Facts{
		Namespace: i.namespace, ID: i.id, Groups: i.groups, Binary: i.binary, Token: way.token(), Joined: way.joined,
		Abandoned: i.state == reaping && i.ledger.abandonedLocked(),
	}
	if i.bundle != nil {
		f.Dir = i.bundle.Path
	}
	return f
}

func (b behind) Runs(id shimclient.ProcessID) bool { return b.i.runs(id) }

func (b behind) Gone() bool { return b.i.initGone() }

func (b behind) Died() { b.i.cleanUpIfDead() }

// instancesOf are the instances behind a process at this moment.
func instancesOf(p *shimproc.Process) []*Instance {
	members := p.Members()
	all := make([]*Instance, len(members))
	for n, m := range members {
		all[n] = m.(behind).i
	}
	return all
}

// findByToken is shimclient's, bounded.
func (m *ShimManager) findByToken(token string) ([]shimclient.ProcessID, error) {
	ctx, cancel := context.WithTimeout(m.ctx, shimproc.ScanTime)
	defer cancel()
	return shimclient.FindByToken(ctx, token)
}

// runs tells whether a process is one that the shim has told as the container's, with Create, Start or an event, or
// descends from one.
func (i *Instance) runs(id shimclient.ProcessID) bool {
	return slices.ContainsFunc(i.ledger.toldPids(), func(pid uint32) bool {
		if pid == 0 || int(pid) == id.Pid {
			return pid != 0
		}
		ancestor, err := shimclient.LookupProcess(int(pid))
		return err == nil && id.DescendsFrom(ancestor)
	})
}

// hasProcess tells whether a process lives, or may live, that looks like the instance's shim.
func (i *Instance) hasProcess() bool {
	i.mu.Lock()
	var tokens, dirs []string
	if token := i.ledger.passageLocked().token(); token != "" {
		tokens = append(tokens, token)
	}
	if i.bundle != nil {
		dirs = append(dirs, i.bundle.Path)
	}
	i.mu.Unlock()
	answered := i.ledger.answered()
	is, err := shimproc.Found(i.m.ctx, tokens, dirs, func(id shimclient.ProcessID) bool {
		return shimproc.IsOfShimsAge(id, answered, i.runs)
	})
	if errdefs.IsNotImplemented(err) {
		return false
	}
	if err != nil {
		log.G(i.context()).WithError(err).Warn("cannot tell whether the shim lives, so it is taken to")
	}
	return is
}

// keyedLock is one lock for each key. The zero value is ready. Unlike a mutex it is held across
// a launch or an RPC, and a caller that waits for it can leave.
type keyedLock struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the key is free again
}

// lock waits for the key; unlock must be called once, if there is no error.
func (l *keyedLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	mine := make(chan struct{})
	err = await.Until(ctx, func() (await.Wake, bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if free, taken := l.held[key]; taken {
			return await.Wake{free}, false
		}
		if l.held == nil {
			l.held = make(map[string]chan struct{})
		}
		l.held[key] = mine
		return await.Wake{}, true
	})
	if err != nil {
		return nil, errors.Wrapf(err, "waiting for another call for %s to end", key)
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, key)
		close(mine)
	}, nil
}

// bootstrap returns how to reach the instance's shim: what its bundle says or, if that is lost, what our record does.
func (i *Instance) bootstrap() (*bootapi.BootstrapResult, error) {
	i.mu.Lock()
	d, known := i.bundle, i.ledger.endpointLocked()
	i.mu.Unlock()
	if d == nil {
		return nil, errors.Wrapf(errdefs.ErrUnavailable, "%s %s is still being started", i.kind, i.id)
	}
	r, err := d.ReadBootstrap()
	if known == nil || err == nil && r.Address != known.Address {
		return r, err
	}
	// An address that a shim has left by itself says neither version nor protocol.
	return &bootapi.BootstrapResult{
		Version: int32(known.Version), Protocol: known.Protocol, Address: known.Address, Extensions: r.GetExtensions(),
	}, nil
}

// recordEndpoint keeps how to reach the shim in the record too.
func (i *Instance) recordEndpoint(ep shimclient.Endpoint) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ledger.recordEndpointLocked(ep)
	i.version = ep.Version
}

func (i *Instance) processDead() bool {
	p := i.process()
	return p == nil || p.IsDead()
}

// takenWarm tells whether a warm shim serves the instance.
func (i *Instance) takenWarm() bool {
	return i.ledger.passage().warm != ""
}
