// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/v2/pkg/tracing"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/spans"
	"github.com/shimyard/shimyard/shimclient"
)

const (
	// restoreDelay is how long the restore leaves the machine to the daemon's own start, unless a caller asks for an
	// instance.
	restoreDelay = 250 * time.Millisecond
)

// enlist enters what is on disk as restoring, by the names alone.
func (m *ShimManager) enlist(ctx context.Context, layout bundle.Layout, kind life.Kind) error {
	found, err := layout.List()
	if err != nil {
		return err
	}
	for _, path := range found.Unknown {
		logUnknown(ctx, path)
	}
	for _, b := range found.Bundles {
		i := newInstance(m, layout, kind, b.Namespace, b.ID, life.Restoring)
		i.reading = sync.OnceFunc(func() { m.restoreOne(i.scope(m.ctx), i, b) })
		if other := m.enterFree(i); other != nil {
			log.G(i.scope(ctx)).Errorf("found a bundle for a %s whose id is a %s's, leaving it alone", kind, other.kind)
			continue
		}
		i.mu.Lock()
		i.found = true
		i.mu.Unlock()
		m.tally.Found()
		m.mu.Lock()
		m.restored = append(m.restored, i)
		m.mu.Unlock()
	}
	return nil
}

func logUnknown(ctx context.Context, path string) {
	log.G(ctx).WithField("path", path).Warn("found something that is no bundle among the bundles, leaving it alone")
}

// restore reads all that was listed and then lets the work on it begin: connecting to shims, undoing, cleaning up. It
// leaves the daemon's start alone for a moment; a call for one instance reads that one by itself, and one that has to
// wait for more makes it begin at once.
func (m *ShimManager) restore() {
	select {
	case <-await.After(restoreDelay):
	case <-m.urgent:
	case <-m.ctx.Done():
		return
	}
	m.mu.Lock()
	restored := m.restored
	m.restored = nil
	m.mu.Unlock()
	// Not in the plugin's init: the plugin for tracing may come after this one.
	ctx, span := tracing.StartSpan(m.ctx, spans.Restore, tracing.WithAttribute("instances", len(restored)))
	defer m.spawn(func() { m.endRestoreSpan(span) })
	var g errgroup.Group
	g.SetLimit(readers)
	for _, i := range restored {
		g.Go(func() error { i.read(); return nil })
	}
	_ = g.Wait() // nothing fails
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

// restoreOne reads the records of one bundle and puts the instance behind its process. It sends nothing and starts
// nothing.
func (m *ShimManager) restoreOne(ctx context.Context, i *Instance, b *bundle.Bundle) {
	if !b.Recognized() {
		logUnknown(ctx, b.Path)
		m.forget(i)
		return
	}
	i.load(ctx, b)
	r, err := b.ReadBootstrap()
	if err != nil && !i.mayHaveTask() {
		i.logger(ctx).WithError(err).Info("cleaning up a create that was cut short")
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
		Launched: i.launchedHere(), Pid: i.ledger.Passage().Shim, Answered: i.ledger.Passage().Answered(), Owned: true,
	})
	if err != nil {
		i.logger(ctx).WithError(err).Error("cannot attach a bundle to its shim, leaving it alone")
		return
	}
	i.onAttached(p)
}

// mayHaveTask tells whether a Create may have been sent for a bundle that does not say how to reach its shim. How to is
// written down before a Create, there and in our record, so one of these tells it, whichever file was lost; in a bundle
// of another containerd runc's file with the pid does.
func (i *Instance) mayHaveTask() bool {
	_, _, err := i.home().InitPid()
	return i.ledger.Fate().Created || i.ledger.Passage().Endpoint != nil || err == nil
}

// onAttached lets the takeover of a restored instance begin, now that it has a process.
func (i *Instance) onAttached(p *shimproc.Process) {
	i.restoreHouse(i.context(), p)
	lingers, abandoned := i.ledger.Fate().Lingers, i.ledger.Fate().NeverCreated()
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
			i.logger(ctx).WithError(err).
				Warn("cannot read the record of a bundle, leaving it as it is and taking the bundle for one of stock containerd")
			i.ledger.Seal()
		}
		// Nothing is known of it, so it is taken for a created task: whatever ends it is told.
		rec = &bundle.Record{Version: bundle.RecordVersion, BootID: shimclient.BootID(), Created: true,
			Task: ledger.Foreign(b)}
	}
	path, err := b.ShimBinary()
	if err != nil && !errdefs.IsNotFound(err) {
		i.logger(ctx).WithError(err).Warn("cannot read which binary started the shim")
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
	labelRuntime(rec)
	house := i.loadHouse(ctx, b, rec.Warm)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.creation.SetCut(!rec.Created)
	i.bundle, i.house = b, house
	i.binary = shimclient.Binary{Runtime: rec.Runtime, Path: path}
	i.ledger.Load(rec)
}

// askAgain is the pause before a restored instance's shim is asked again after an answer that decides nothing.
const askAgain = time.Second

// takeOver asks the shim of a restored instance what it knows, until it says so or is proven dead. A shim that is
// silent keeps the instance restoring, for as long as that takes.
func (i *Instance) takeOver() {
	said := "" // the last error that was logged
	// At the end of the daemon the next start goes on.
	_ = await.Until(i.m.ctx, func() (await.Wake, bool) {
		p := i.process()
		st, changed := i.watch()
		if st == life.Deleting {
			return await.Wake{changed}, false // it may fail, and is to be restored again then
		}
		if st != life.Restoring || p == nil {
			return await.Wake{}, true
		}
		_, ps, moved := p.Watch()
		if ps == shimproc.Connected {
			if i.ask(&said) {
				return await.Wake{}, true
			}
			moved = await.After(askAgain)
		}
		return await.Wake{changed, moved}, false
	})
}

// ask sends the one State (or Status) of a restore. True when it decided. An error is logged unless it was said.
func (i *Instance) ask(said *string) bool {
	ctx := i.context()
	known, err := i.askKnown(ctx)
	if err == nil {
		err = i.confirm(ctx, known)
	}
	if err == nil {
		i.verifyShim(ctx)
	}
	switch {
	case errors.Is(err, shimproc.ErrStranger):
		i.loseStranger(err)
		return false
	case err != nil:
		if !errdefs.IsUnavailable(err) && !errdefs.IsDeadlineExceeded(err) && err.Error() != *said {
			*said = err.Error()
			i.logger(ctx).WithError(err).Warn("shim does not say what it knows of a restored instance; asking again")
		}
		return false
	case known:
		i.onAnswered()
		i.cleanUpIfDead()
		failpoint.Here("restore-answered")
		i.mendBootstrap()
		i.ledger.Save()
		i.m.spawn(i.replayFound)
		return true
	case i.disownStranger():
		return false
	case i.onUnknown():
		i.logger(ctx).Info("shim has no such task, cleaning up")
		if i.ledger.Fate().Created {
			i.m.spawn(i.cleanUpDeleted)
		} else {
			i.m.spawn(i.undo)
		}
	}
	return true
}

// disownStranger gives up a connection to another process than the instance's, whose pid is gone. True when it was one.
func (i *Instance) disownStranger() bool {
	p := i.process()
	if p == nil || !p.IsGone() {
		return false
	}
	if l, _, _ := p.Watch(); l != nil {
		_ = l.Conn.Close()
	}
	return true
}

// askKnown tells whether the instance exists: by its shim's word, or because the sandbox store knows the id. A
// sandbox's shim may serve no task under the sandbox's id.
func (i *Instance) askKnown(ctx context.Context) (bool, error) {
	err := i.askShim(ctx)
	if !errdefs.IsNotFound(err) || i.processDead() {
		return err == nil, err
	}
	if i.ledger.Fate().Deleted {
		return false, nil
	}
	_, err = i.m.config.Sandboxes.Get(ctx, i.id)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, errors.Wrap(err, "cannot look into the sandbox store")
}

func (i *Instance) askShim(ctx context.Context) error {
	if i.kind == life.Sandbox {
		return i.askSandbox(ctx)
	}
	_, err := i.sendState(ctx, "")
	return err
}

// askSandbox asks a restored sandbox's shim for its status.
func (i *Instance) askSandbox(ctx context.Context) error {
	return i.box(ctx, shimproc.Repeatable, func(ctx context.Context, s *shimclient.Sandbox) error {
		r, err := s.Status(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: i.id})
		if err == nil {
			i.learnPid(r.GetPid())
		}
		return err
	})
}

// findAddresses sees to the instances whose bundles do not say how to reach their shims. It runs once all records are
// read: another instance may know the process that serves one of them.
func (m *ShimManager) findAddresses() {
	m.mu.Lock()
	all := m.unaddressed
	m.unaddressed = nil
	m.mu.Unlock()
	for _, u := range all {
		if p := m.findAddress(u); p != nil {
			u.i.onAttached(p)
		}
		u.i.announce()
	}
}
