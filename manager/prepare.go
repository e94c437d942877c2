// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// prepare makes the bundle of a reserved instance whose shim has none for it.
func (m *ShimManager) prepare(ctx context.Context, i *Instance, facts specFacts) error {
	return makingBundle(func() error { return m.makeBundle(ctx, i, facts) })
}

func (m *ShimManager) makeBundle(ctx context.Context, i *Instance, facts specFacts) error {
	o := bundle.CreateOptions{Spec: facts.raw, GID: facts.gid}
	d, err := i.layout.Create(i.namespace, i.id, o)
	if errdefs.IsAlreadyExists(err) {
		// The id is ours, so no other instance has this directory: a create or a removal was cut short and could not be
		// undone.
		if err := m.clearLeftover(ctx, i); err != nil {
			return err
		}
		d, err = i.layout.Create(i.namespace, i.id, o)
	}
	if err != nil {
		return err
	}
	i.mu.Lock()
	i.bundle = d
	path := i.binary.Path
	i.mu.Unlock()
	failpoint.Here("create-bundle")
	if path == "" {
		return nil // it joins a shim whose binary is not known, see binaryFor
	}
	return d.WriteShimBinary(path)
}

// clearLeftover removes the bundle of a dead instance that is in no map. One whose shim may live stays, and the
// id with it; so does a directory that is no bundle, and one that cannot be read: what is in it may be a user's data.
// Errors: AlreadyExists.
func (m *ShimManager) clearLeftover(ctx context.Context, i *Instance) error {
	old := newInstance(m, i.layout, i.kind, i.namespace, i.id, reaping)
	d, err := i.layout.Open(i.namespace, i.id)
	if err != nil {
		return err
	}
	if !d.Recognized() {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s is in the way of %s %s and is no bundle; move it away",
			d.Path, i.kind, i.id)
	}
	old.load(ctx, d)
	shim := old.ledger.recordedShim()
	if shim.Alive() || old.hasProcess() || shim == (shimclient.ProcessID{}) && m.serves(ctx, d) {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s %s has a bundle %s whose shim still runs; end that first",
			i.kind, i.id, d.Path)
	}
	log.G(ctx).WithField("path", d.Path).Warn("removing the leftover of an earlier instance")
	return old.cleanOnce(ctx, &cleaning{shimDelete: true})
}

// serves tells whether a shim may listen where a bundle says that its own does; true where what it says cannot be used.
func (m *ShimManager) serves(ctx context.Context, d *bundle.Bundle) bool {
	r, err := d.ReadBootstrap()
	if err != nil {
		return !errdefs.IsNotFound(err)
	}
	ep, err := shimclient.EndpointOf(r)
	if err != nil {
		return true
	}
	return shimproc.Probe(ctx, ep) != shimclient.Refused
}

// clearPlace removes what an earlier instance has left in the place of the bundle, or says why it stays.
func (m *ShimManager) clearPlace(ctx context.Context, i *Instance) error {
	if _, err := i.layout.Open(i.namespace, i.id); errdefs.IsNotFound(err) {
		return nil
	}
	return m.clearLeftover(ctx, i)
}
