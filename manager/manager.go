// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/features"
	"github.com/shimyard/shimyard/manager/internal/follow"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/mounts"
	"github.com/shimyard/shimyard/manager/internal/progress"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

const (
	// closeTimeout bounds Close.
	closeTimeout = 5 * time.Second
	// readers is how many bundles are read at a time at the start.
	readers = 4
)

// sandboxVersion is the first version of the Task API whose shims serve a whole sandbox by themselves. Older ones want
// `start` for each container, even where a group shares one process.
const sandboxVersion = 3

// key is what an instance is known by.
type key struct{ namespace, id string }

// ShimManager owns all instances and shim processes of a daemon. Safe for concurrent use.
type ShimManager struct {
	config   Config
	resolver *shimclient.Resolver
	launcher *shimclient.Launcher
	policy   *shimclient.Policy
	features *features.Cache
	pool     *pool

	// ctx is the life of the manager's own goroutines. It carries the values of the context given to New but not its
	// cancellation: containerd cancels that one before it calls Close.
	ctx    context.Context
	cancel context.CancelFunc
	// work is what Close waits for: the manager's goroutines, and the calls that have a warm shim in their hands.
	work await.Group

	follower *follow.Follower
	pace
	// desk is what all ledgers share, the daemon's start among it.
	desk  *ledger.Desk
	procs *shimproc.Registry
	boot

	// mu guards all below up to the next gap. Never held while anything else is done.
	mu sync.Mutex
	// +checklocks:mu
	instances map[key]*Instance
	// +checklocks:mu
	leaving map[key][]*Instance // gone, and events of theirs may still come; several of one id
	// +checklocks:mu
	leftovers

	// starts lets one launch at a time into a group, by namespace and group.
	starts await.KeyedLock

	// mounts activates and deactivates; set once, before the first task exists.
	mounts *mounts.Controller
}

// begin starts the work in the background on what was found on disk. Not before all records are read: until then it
// cannot be told who else is behind a shim.
func (m *ShimManager) begin() {
	m.mu.Lock()
	found := m.found
	m.found = nil
	m.begun = true
	m.mu.Unlock()
	metrics.RestoreStage("read", time.Since(m.desk.Started()))
	close(m.ready)
	for _, f := range found {
		m.spawn(f)
	}
}

// awaitReady waits until all records are read.
func (m *ShimManager) awaitReady(ctx context.Context) error {
	m.urge()
	select {
	case <-m.ready:
		return nil
	case <-ctx.Done():
		return errors.Wrap(ctx.Err(), "waiting until all existing bundles are read")
	case <-m.ctx.Done():
		return errors.Wrap(errdefs.ErrUnavailable, "the daemon is stopping")
	}
}

// onBegin runs f in the background, once begin was called.
func (m *ShimManager) onBegin(f func()) {
	m.mu.Lock()
	if !m.begun {
		m.found = append(m.found, f)
		m.mu.Unlock()
		return
	}
	m.mu.Unlock()
	m.spawn(f)
}

// ID of the plugin, as stock containerd's.
func (m *ShimManager) ID() string { return plugins.ShimPlugin.String() + ".manager" }

// Env is the configured environment of shims. CRI asks for it to tell whether SCHED_CORE is set.
func (m *ShimManager) Env() []string { return slices.Clone(m.config.Env) }

// Close ends the idle warm shims and the manager's goroutines within closeTimeout. It ends no shim that serves a task,
// closes no connection of one and fails no Wait: the containers go on, and the next daemon takes them over.
func (m *ShimManager) Close() error {
	done := make(chan struct{})
	go func() {
		m.pool.account.Close()
		m.cancel()
		<-m.work.Drain()
		close(done)
	}()
	defer m.cancel()
	defer metrics.Unfollow(m)
	select {
	case <-done:
		return nil
	case <-time.After(closeTimeout):
		return errors.Wrap(context.DeadlineExceeded,
			"cannot end all background work of the shim manager; what is unfinished is taken up at the next start")
	}
}

// spawn runs f as one of the manager's goroutines. The channel is closed when f has returned.
func (m *ShimManager) spawn(f func()) <-chan struct{} {
	done := make(chan struct{})
	m.work.Go(func() {
		defer close(done)
		f()
	})
	return done
}

// enter counts a call in that has, or may get, a warm shim in its hands: one that a clean stop must not find there, or
// the shim would stay behind with nothing to do. Unavailable once the manager is closed.
func (m *ShimManager) enter() (leave func(), err error) {
	leave, ok := m.work.Enter()
	if !ok {
		return nil, errors.Wrap(errdefs.ErrUnavailable, "the daemon is stopping")
	}
	return leave, nil
}

// sleep waits for d; false when the manager was closed meanwhile.
func (m *ShimManager) sleep(d time.Duration) bool { return await.Sleep(m.ctx, d) }

// enterFree enters i into the map, unless there is one of its id, which it returns then.
func (m *ShimManager) enterFree(i *Instance) (other *Instance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if other = m.instances[i.key()]; other == nil {
		m.instances[i.key()] = i
	}
	return other
}

// forget takes i out of the map, if it is still the one under its id, and says so to all who wait for that.
func (m *ShimManager) forget(i *Instance) {
	m.mu.Lock()
	if m.instances[i.key()] == i {
		delete(m.instances, i.key())
	}
	m.mu.Unlock()
	i.onGone()
}

// find returns the instance of an id, whatever its kind and state, or nil.
func (m *ShimManager) find(namespace, id string) *Instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.instances[key{namespace, id}]
}

// get returns a listed instance of the given kind, NotFound otherwise.
func (m *ShimManager) get(namespace, id string, kind life.Kind) (*Instance, error) {
	i := m.find(namespace, id)
	if i == nil || i.kind != kind {
		return nil, life.ErrNone(kind, id)
	}
	i.read()
	if st, _ := i.watch(); !st.IsListed() {
		return nil, life.ErrNone(kind, id)
	}
	return i, nil
}

// list returns the listed instances of a kind; namespace "" means all.
func (m *ShimManager) list(namespace string, kind life.Kind) []*Instance {
	m.mu.Lock()
	all := make([]*Instance, 0, len(m.instances))
	for k, i := range m.instances {
		if i.kind == kind && (namespace == "" || k.namespace == namespace) {
			all = append(all, i)
		}
	}
	m.mu.Unlock()
	return slices.DeleteFunc(all, func(i *Instance) bool {
		st, _ := i.watch()
		return !st.IsListed()
	})
}

// pace is how long the manager waits, and for what. It does not change once the manager has begun.
type pace struct {
	// cleanPauses are between the attempts at a clean-up.
	cleanPauses await.Pauses
	// createTurn is how long an unanswered Create holds up the creates that wait.
	createTurn time.Duration
}

// boot is what is waited for when the daemon has started.
type boot struct {
	// ready is closed when all records are read; urgent, once, when a caller waits for that.
	ready, urgent chan struct{}
	urge          func()
	tally         *progress.Tally
}

// leftovers is what was found at the start of the daemon and is not seen to yet.
type leftovers struct {
	restored []*Instance // listed from disk, for the restore
	found    []func()    // what the restore is to start once all records are read
	begun    bool
	// unaddressed are those of restored whose bundles do not say how to reach their shims.
	unaddressed []unaddressed
}

// unaddressed is a restored instance whose bundle does not say how to reach its shim, and why it does not.
type unaddressed struct {
	i   *Instance
	why error
}
