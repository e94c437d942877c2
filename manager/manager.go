// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// closeTimeout bounds Close.
const closeTimeout = 5 * time.Second

// key is what an instance is known by.
type key struct{ namespace, id string }

// ShimManager owns all instances and shim processes of a daemon. Safe for concurrent use.
type ShimManager struct {
	config   Config
	resolver *shimclient.Resolver
	launcher *shimclient.Launcher
	policy   *shimclient.Policy
	infos    infoCache
	pool     *pool

	// ctx is the life of the manager's own goroutines. It carries the values of the context given to New but not its
	// cancellation: containerd cancels that one before it calls Close.
	ctx    context.Context
	cancel context.CancelFunc
	// work is what Close waits for: the manager's goroutines, and the calls that have a warm shim in their hands.
	work await.Group

	follower follower
	// cleanPause comes before the second attempt at a clean-up; those that follow it are longer.
	cleanPause time.Duration
	// desk is what all ledgers share, the daemon's start among it.
	desk *ledger.Desk
	// undecided counts the instances found at the start of which it is not known yet what becomes of them.
	undecided atomic.Int64
	procs     *shimproc.Registry

	// mu guards all below up to unaddressed. Never held while anything else is done.
	mu        sync.Mutex
	instances map[key]*Instance
	leaving   map[key][]*Instance // gone, and events of theirs may still come; several of one id
	restored  []*Instance         // listed from disk at the start, for the restore
	found     []func()            // what the restore is to start once all records are read
	begun     bool
	// unaddressed are those of restored whose bundles do not say how to reach their shims.
	unaddressed []unaddressed

	// ready is closed when all records are read; urgent, once, when a caller waits for that.
	ready, urgent chan struct{}
	urge          func()

	// starts lets one launch at a time into a group, by namespace and group.
	starts keyedLock

	// mounts activates and deactivates; set once, before the first task exists.
	mounts *mountController
}

// New makes a manager and lists what is on disk as restoring: by the names of the bundles, without looking into any. Of
// ctx only the values are used.
func New(ctx context.Context, config Config) (*ShimManager, error) {
	m, err := newManager(ctx, config)
	if err != nil {
		return nil, err
	}
	for _, of := range []struct {
		kind Kind
		dirs Dirs
	}{{KindTask, config.Tasks}, {KindSandbox, config.Boxes}} {
		if err := m.enlist(m.ctx, of.dirs.layout(), of.kind); err != nil {
			m.cancel()
			return nil, errors.Wrapf(err, "cannot list existing %ss", of.kind)
		}
	}
	metrics.RestoreStage("listed", time.Since(m.desk.Started))
	// Not before: what is heard of an instance that is not listed is lost. No shim can tell anything before the daemon
	// serves.
	m.follow()
	return m, nil
}

// newManager makes a manager that knows of nothing: it has looked at no directory and follows no events.
func newManager(ctx context.Context, config Config) (*ShimManager, error) {
	if config.Events == nil || config.Sandboxes == nil {
		return nil, errors.Wrap(errdefs.ErrInvalidArgument,
			"cannot make a shim manager without an event exchange and a sandbox store")
	}
	if config.Deadlines == nil {
		config.Deadlines = shimclient.DefaultDeadlines()
	}
	if err := config.checkDeadlines(); err != nil {
		return nil, errors.Wrap(err, "cannot make a shim manager")
	}
	if err := config.checkRuntimes(); err != nil {
		return nil, errors.Wrap(err, "cannot make a shim manager")
	}
	config.Env = slices.Clone(config.Env)
	policy, err := newPolicy(&config)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m := &ShimManager{
		config:   config,
		policy:   policy,
		resolver: shimclient.NewResolver(config.paths()),
		launcher: shimclient.NewLauncher(shimclient.LauncherConfig{
			GRPCAddress:  config.GRPCAddress,
			TTRPCAddress: config.TTRPCAddress,
			SocketDir:    config.SocketDir,
			Env:          config.Env,
			EnvOf:        func(b shimclient.Binary) []string { return config.runtime(b).Env },
			OnQueued:     func(d time.Duration) { metrics.Phase(metrics.PhaseQueue, time.Now().Add(-d)) },
			OnExec:       metrics.Exec,
		}),
		ctx:       ctx,
		cancel:    cancel,
		instances: make(map[key]*Instance),
		leaving:   make(map[key][]*Instance),
		ready:     make(chan struct{}),
		urgent:    make(chan struct{}),

		cleanPause: firstCleanPause,
	}
	m.desk = ledger.NewDesk(func(f func()) { m.spawn(f) }, m.sleep)
	m.pool = newPool(m)
	m.procs = shimproc.NewRegistry(m.registryConfig())
	m.urge = sync.OnceFunc(func() { close(m.urgent) })
	return m, nil
}

// registryConfig is what shim processes need of the manager.
func (m *ShimManager) registryConfig() shimproc.Config {
	return shimproc.Config{
		Context: m.ctx, Spawn: m.spawn, Begin: m.onBegin, Urge: func() { m.urge() },
		Deadlines: m.config.deadlines, EscalateAfter: m.config.EscalateAfter, Observe: observeCall,
		OnDistrust: m.pool.distrust,
		OnEnd: func(p *shimproc.Process) {
			if w := warmth(p); w != nil {
				m.pool.ended(w)
			}
		},
	}
}

// begin starts the work in the background on what was found on disk. Not before all records are read: until then it
// cannot be told who else is behind a shim.
func (m *ShimManager) begin() {
	m.mu.Lock()
	found := m.found
	m.found = nil
	m.begun = true
	m.mu.Unlock()
	metrics.RestoreStage("read", time.Since(m.desk.Started))
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
func (m *ShimManager) get(namespace, id string, kind Kind) (*Instance, error) {
	i := m.find(namespace, id)
	if i == nil || i.kind != kind {
		return nil, errNoInstance(kind, id)
	}
	i.read()
	if st, _ := i.watch(); !st.listed() {
		return nil, errNoInstance(kind, id)
	}
	return i, nil
}

// list returns the listed instances of a kind; namespace "" means all.
func (m *ShimManager) list(namespace string, kind Kind) []*Instance {
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
		return !st.listed()
	})
}
