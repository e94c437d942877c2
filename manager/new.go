// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/features"
	"github.com/shimyard/shimyard/manager/internal/follow"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/progress"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// New makes a manager and lists what is on disk as restoring: by the names of the bundles, without looking into any. Of
// ctx only the values are used.
func New(ctx context.Context, config Config) (*ShimManager, error) {
	m, err := newManager(ctx, config)
	if err != nil {
		return nil, err
	}
	for _, of := range []struct {
		kind life.Kind
		dirs Dirs
	}{{life.Task, config.Tasks}, {life.Sandbox, config.Boxes}} {
		if err := m.enlist(m.ctx, of.dirs.layout(), of.kind); err != nil {
			m.cancel()
			return nil, errors.Wrapf(err, "cannot list existing %ss", of.kind)
		}
	}
	metrics.RestoreStage("listed", time.Since(m.desk.Started()))
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
			Admit:        policy.Admit,
			OnQueued:     func(d time.Duration) { metrics.Phase(metrics.PhaseQueue, time.Now().Add(-d)) },
			OnExec:       metrics.Exec,
		}),
		ctx:       ctx,
		cancel:    cancel,
		instances: make(map[key]*Instance),
		leaving:   make(map[key][]*Instance),
		boot: boot{
			ready: make(chan struct{}), urgent: make(chan struct{}), tally: progress.NewTally(metrics.Outcomes...),
		},

		pace: pace{cleanPauses: await.Pauses{First: time.Second, Last: time.Minute}, createTurn: time.Second},
	}
	started := time.Now()
	m.desk = ledger.NewDesk(ledger.Desk{
		Started: func() time.Time { return started }, Spawn: func(f func()) { m.spawn(f) }, Sleep: m.sleep,
		Replay: func(k ledger.Keeper) { k.(keeper).i.replay() }, Repeat: func(k ledger.Keeper) { k.(keeper).i.repeat() },
	})
	config.keepRuntimeNames()
	m.features = features.New(m.launcher)
	m.follower = follow.New(func(f func()) { m.spawn(f) }, m.sleep)
	m.pool = newPool(m)
	m.procs = shimproc.NewRegistry(m.registryConfig())
	m.urge = sync.OnceFunc(func() { close(m.urgent) })
	return m, nil
}

// registryConfig is what shim processes need of the manager.
func (m *ShimManager) registryConfig() shimproc.Config {
	return shimproc.Config{
		Context: m.ctx, Spawn: m.spawn, Begin: m.onBegin, Urge: func() { m.urge() },
		Deadlines: m.config.deadlines, EscalateAfter: m.config.EscalateAfter,
		OnDistrust: m.pool.distrust,
		OnDied:     func(of shimproc.Member) { of.(behind).i.cleanUpIfDead() },
		OnEnd: func(p *shimproc.Process) {
			if w := warmth(p); w != nil {
				m.pool.ended(w)
			}
		},
	}
}
