// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/ledger"
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

	// ledger has the record, the exits and who was told. It, creation and remains have locks of their own.
	ledger   *ledger.Ledger
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
	i.ledger = ledger.New(m.desk, keeper{i}, kind == KindTask)
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

// knowsExec tells whether a living task has the exec.
func (i *Instance) knowsExec(id string) bool {
	st, _ := i.watch()
	return st.listed() && i.ledger.ExecOf(id).IsKnown()
}

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

// keeper is an instance as its ledger sees it.
type keeper struct{ i *Instance }

var _ ledger.Keeper = keeper{}

func (k keeper) Context() context.Context { return k.i.context() }

func (k keeper) Bundle() *bundle.Bundle { return k.i.home() }

func (k keeper) Replay() { k.i.replay() }

func (k keeper) Repeat() { k.i.repeat() }

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
	way := i.ledger.Passage()
	f := shimproc.Facts{
		Namespace: i.namespace, ID: i.id, Groups: i.groups, Binary: i.binary, Token: way.Token(), Joined: way.Joined,
		Abandoned: i.state == reaping && i.ledger.Fate().Abandoned,
	}
	if i.bundle != nil {
		f.Dir = i.bundle.Path
	}
	return f
}

func (b behind) Runs(id shimclient.ProcessID) bool { return b.i.ledger.Runs(id) }

func (b behind) Gone() bool { return b.i.ledger.InitGone() }

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
	d, known := i.home(), i.ledger.Passage().Endpoint
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
