// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/tracing"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

const (
	// restoreDelay is how long the restore leaves the machine to the daemon's own start, unless a caller asks for an instance.
	restoreDelay = 250 * time.Millisecond
	// readers is how many bundles are read at a time.
	readers = 4
)

// enlist enters what is on disk as restoring, by the names alone.
func (m *ShimManager) enlist(ctx context.Context, layout bundle.Layout, kind Kind) error {
	found, err := layout.List()
	if err != nil {
		return err
	}
	for _, path := range found.Unknown {
		logUnknown(ctx, path)
	}
	for _, b := range found.Bundles {
		i := newInstance(m, layout, kind, b.Namespace, b.ID, restoring)
		i.reading = sync.OnceFunc(func() { m.restoreOne(i.scope(m.ctx), i, b) })
		if other := m.instances[i.key()]; other != nil {
			log.G(i.scope(ctx)).Errorf("found a bundle for a %s whose id is a %s's, leaving it alone", kind, other.kind)
			continue
		}
		i.found = true
		m.undecided.Add(1)
		m.instances[i.key()] = i
		m.restored = append(m.restored, i)
	}
	return nil
}

func logUnknown(ctx context.Context, path string) {
	log.G(ctx).WithField("path", path).Warn("found something that is no bundle among the bundles, leaving it alone")
}

// restore reads all that was listed and then lets the work on it begin: connecting to shims, undoing, cleaning up. It leaves the daemon's
// start alone for a moment; whoever asks for one instance reads that one by himself, and who has to wait for more makes it begin at once.
func (m *ShimManager) restore() {
	select {
	case <-after(restoreDelay):
	case <-m.urgent:
	case <-m.ctx.Done():
		return
	}
	// Not in the plugin's init: the plugin for tracing may come after this one.
	ctx, span := tracing.StartSpan(m.ctx, spanRestore, tracing.WithAttribute("instances", len(m.restored)))
	defer span.End()
	var g errgroup.Group
	g.SetLimit(readers)
	for _, i := range m.restored {
		g.Go(func() error { i.read(); return nil })
	}
	_ = g.Wait() // nothing fails
	m.restored = nil
	m.findAddresses()
	m.restoreWarm(ctx)
	failpoint.Here("restore-listed")
	for _, dirs := range []Dirs{m.config.Tasks, m.config.Boxes} {
		m.sweep(m.ctx, dirs.layout())
	}
	m.onBegin(m.launcher.SweepLinks)
	m.begin()
}

// sweep removes what earlier runs left; no create begins before.
func (m *ShimManager) sweep(ctx context.Context, layout bundle.Layout) {
	swept, err := layout.Sweep(func(ns, id string) bool { return m.find(ns, id) != nil })
	for _, path := range swept {
		log.G(ctx).WithField("path", path).Info("removed a leftover of an earlier run")
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("cannot remove all leftovers of earlier runs")
	}
}

// restoreOne reads the records of one bundle and puts the instance behind its process. It sends nothing and starts nothing.
func (m *ShimManager) restoreOne(ctx context.Context, i *Instance, b *bundle.Bundle) {
	if !b.Recognized() {
		logUnknown(ctx, b.Path)
		m.forget(i)
		return
	}
	i.load(ctx, b)
	r, err := b.ReadBootstrap()
	if err != nil && !i.mayHaveTask() {
		log.G(ctx).WithError(err).Info("cleaning up a create that was cut short")
		if i.onUnknown() {
			m.onBegin(i.undo)
		}
		return
	}
	i.mu.Lock()
	i.mend = err != nil
	i.mu.Unlock()
	if known, kerr := i.bootstrap(); kerr == nil {
		r, err = known, nil
	}
	var ep shimclient.Endpoint
	if err == nil {
		ep, err = shimclient.EndpointOf(r)
	}
	if err != nil {
		m.mu.Lock()
		m.unaddressed = append(m.unaddressed, unaddressed{i, err})
		m.mu.Unlock()
		return
	}
	i.recordEndpoint(ep)
	p, _, err := m.procs.Attach(behind{i}, ep.Followed(), shimproc.Origin{
		Launched: i.launchedHere(), Pid: i.ledger.recordedShim(), Answered: i.ledger.answered(), Owned: true,
	})
	if err != nil {
		log.G(ctx).WithError(err).Error("cannot attach a bundle to its shim, leaving it alone")
		return
	}
	i.onAttached(p)
}

// mayHaveTask tells whether a Create may have been sent for a bundle that does not say how to reach its shim. How to is
// written down before a Create, there and in our record, so one of these tells it, whichever file was lost; in a bundle
// of another containerd runc's file with the pid does.
func (i *Instance) mayHaveTask() bool {
	_, _, err := i.bundle.InitPid()
	return i.ledger.wasCreated() || i.ledger.knowsEndpoint() || err == nil
}

// onAttached lets the takeover of a restored instance begin, now that it has a process.
func (i *Instance) onAttached(p *shimproc.Process) {
	i.restoreHouse(i.context(), p)
	lingers, abandoned := i.ledger.wasLingering(), i.ledger.wasAbandoned()
	if lingers || abandoned {
		i.onUnknown()
	}
	i.m.onBegin(func() {
		i.openLog()
		switch {
		case lingers:
			i.restoreLingering(p)
		case abandoned:
			i.undo()
		default:
			i.takeOver()
		}
	})
}

// load fills the instance from the records of a bundle, of ours or of stock containerd's.
func (i *Instance) load(ctx context.Context, b *bundle.Bundle) {
	rec, err := b.ReadRecord()
	if err != nil {
		if !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).Warn("cannot read the record of a bundle, leaving it as it is and taking the bundle for one of stock containerd")
			i.ledger.seal()
		}
		// Nothing is known of it, so it is taken for a created task: whatever ends it is told.
		rec = &bundle.Record{Version: bundle.RecordVersion, BootID: shimclient.BootID(), Created: true, Task: foreignState(b)}
	}
	path, err := b.ShimBinary()
	if err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).Warn("cannot read which binary started the shim")
	}
	if path == "" && rec.Launch != nil {
		path = rec.Launch.Binary
	}
	if rec.BootID != shimclient.BootID() {
		// From before a reboot: no process of then is one of now.
		rec.Shim = nil
		if rec.Task != nil {
			rec.Task.PidStart = 0
		}
	}
	house := i.loadHouse(ctx, b, rec.Warm)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.creation.setCut(!rec.Created)
	i.bundle, i.house = b, house
	i.binary = shimclient.Binary{Runtime: rec.Runtime, Path: path}
	i.ledger.loadLocked(rec)
}
