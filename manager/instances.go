// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/pkg/errors"
)

// reserve enters i into the map. Where an earlier instance of the id is on its way out it waits, up to the cleanup timeout, then
// says AlreadyExists and what is left.
func (m *ShimManager) reserve(ctx context.Context, i *Instance) error {
	if err := m.awaitReady(ctx); err != nil {
		return err
	}
	wctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	for {
		m.mu.Lock()
		other := m.instances[i.key()]
		if other == nil {
			m.instances[i.key()] = i
			m.mu.Unlock()
			return nil
		}
		m.mu.Unlock()
		st, changed := other.watch()
		if !st.ending() {
			return errReserved(other)
		}
		select {
		case <-changed:
		case <-wctx.Done():
			if err := ctx.Err(); err != nil {
				return errors.Wrapf(err, "waiting for the end of an earlier %s %s", i.kind, i.id)
			}
			return errReserved(other)
		}
	}
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
