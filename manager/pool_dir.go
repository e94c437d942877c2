// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// The directory of a warm shim, in which it works and with it all that it runs, becomes the bundle of its task, and
// waits in a place of its own when there is none. Of several tasks in one shim only one can have it; the others'
// bundles are directories of their own, and their OCI runtime works in that of the first.

// moveIn makes the directory of a shim that the instance was given its bundle, or makes one beside it where another
// task has that.
func (m *ShimManager) moveIn(ctx context.Context, i *Instance, w *warmShim, facts specFacts) error {
	if !w.home.Swap(false) { // another task of the shim has it
		return m.moveBeside(ctx, i, w, facts)
	}
	return makingBundle(func() error { return lendHome(i, w, facts) })
}

// lendHome makes the directory of the shim the bundle. That of a shim which is found dead meanwhile is removed, or
// about to be: errShimDead.
func lendHome(i *Instance, w *warmShim, facts specFacts) error {
	w.clearing.Lock()
	defer w.clearing.Unlock()
	if w.p.IsOver() {
		return shimproc.ErrDead
	}
	i.mu.Lock()
	rec, binary := i.ledger.recordLocked(), i.binary
	i.mu.Unlock()
	d, err := w.dir.Assemble(i.namespace, i.id, bundle.AssembleOptions{
		CreateOptions: bundle.CreateOptions{Spec: facts.raw, GID: facts.gid}, Binary: binary.Path, Record: rec,
	})
	if err != nil {
		return err
	}
	failpoint.Here("warm-assembled")
	if err := w.dir.Lend(d); err != nil {
		return err
	}
	i.mu.Lock()
	i.bundle, i.house = d, w
	i.mu.Unlock()
	failpoint.Here("warm-lent")
	return nil
}

// moveBeside makes the bundle of a task that shares a shim with the one whose bundle the shim's directory is.
func (m *ShimManager) moveBeside(ctx context.Context, i *Instance, w *warmShim, facts specFacts) error {
	if err := m.prepare(ctx, i, facts); err != nil {
		return err
	}
	// The record first: a bundle with a bootstrap and without a record is one of stock containerd, of a task that was
	// created.
	if err := i.ledger.persist(); err != nil {
		return err
	}
	failpoint.Here("warm-beside")
	if err := i.bundle.WriteBootstrap(w.reply); err != nil {
		return err
	}
	if err := w.dir.LendLog(i.bundle); err != nil {
		log.G(ctx).WithError(err).Warn("the shim's log could not be drained by another containerd after a rollback")
	}
	return nil
}

// moveOut undoes moveIn, of an instance that nothing was told to yet, and returns why; another error where it fails.
func moveOut(i *Instance, w *warmShim, why error) error {
	i.mu.Lock()
	d, house := i.bundle, i.house
	i.mu.Unlock()
	w.clearing.Lock()
	defer w.clearing.Unlock()
	if house != nil && !w.p.IsOver() { // else nothing comes back for it where it waits, and it goes with the bundle
		if err := d.Return(w.dir); err != nil {
			return errors.Wrapf(err, "cannot undo a bundle after this: %v", why)
		}
	}
	if err := d.Remove(); err != nil {
		return errors.Wrapf(err, "cannot undo a bundle after this: %v", why)
	}
	i.mu.Lock()
	i.bundle, i.house = nil, nil
	i.mu.Unlock()
	return why
}

// removeBundle removes the bundle. The directory of a warm shim that goes on without the instance waits for another
// task then; of one that is over it goes with the bundle.
func (i *Instance) removeBundle(d *bundle.Bundle) error {
	i.mu.Lock()
	w := i.house
	i.mu.Unlock()
	switch {
	case w == nil:
	case w.p == nil:
		// How to reach it is not known, and it is not there any more.
		i.m.launcher.RemoveSockets(i.namespace, []string{w.dir.ID})
	default:
		if err := i.m.pool.takeHome(w, d); err != nil {
			return err
		}
	}
	return d.Remove()
}

// takeHome moves the directory of a shim that goes on without the task whose bundle it was to where it waits, and
// empties it.
func (o *pool) takeHome(w *warmShim, d *bundle.Bundle) error {
	w.clearing.Lock()
	defer w.clearing.Unlock()
	if w.p.IsOver() {
		return nil
	}
	err := d.Return(w.dir)
	if errdefs.IsNotFound(err) {
		o.distrust(w.p) // it works in a directory that is not there any more
		return nil
	}
	if err != nil {
		return err
	}
	failpoint.Here("warm-returned")
	if err := w.dir.Empty(); err != nil {
		return err
	}
	failpoint.Here("warm-emptied")
	w.home.Store(true)
	return nil
}

// loadHouse is the warm shim whose directory the bundle is, nil when it is none's. id is the shim that serves the
// instance.
func (i *Instance) loadHouse(ctx context.Context, b *bundle.Bundle, id string) *warmShim {
	if id == "" {
		// Our record is lost, or it is no warm shim's.
		var err error
		if id, err = b.LentID(); err != nil {
			return nil
		}
	}
	dir, err := i.layout.Lent(b, id)
	if errdefs.IsNotFound(err) {
		return nil // another task of the shim has it
	}
	var rec *bundle.WarmRecord
	if err == nil {
		rec, err = dir.ReadRecord()
	}
	if err != nil {
		log.G(ctx).WithError(err).Error("cannot use the record of the warm shim whose directory a bundle is")
		return nil
	}
	return i.m.warmOf(dir, rec)
}

// restoreHouse makes the process of a restored instance whose bundle is the directory of a warm shim the pool's, which
// ends it with the last that is in it: it is not known whether all that it did went well.
func (i *Instance) restoreHouse(ctx context.Context, p *shimproc.Process) {
	i.mu.Lock()
	w := i.house
	i.mu.Unlock()
	if w == nil {
		return
	}
	w.reply = &bootapi.BootstrapResult{}
	if p.LostAddress() == nil {
		ep := p.Endpoint
		w.reply = &bootapi.BootstrapResult{Version: int32(ep.Version), Protocol: ep.Protocol, Address: ep.Address}
	}
	if err := p.KeepFor(w, w.facts(shimclient.ProcessID{})); err != nil {
		log.G(ctx).WithError(err).Error("cannot use the record of a warm shim; it ends with its task")
		return
	}
	i.m.pool.distrust(w.p)
	i.m.onBegin(func() { w.takeOver(ctx, i.m, false) })
}
