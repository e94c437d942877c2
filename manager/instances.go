// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
)

// reserve enters i into the map. Where an earlier instance of the id is on its way out it waits, up to the cleanup timeout, then
// says AlreadyExists and what is left.
func (m *ShimManager) reserve(ctx context.Context, i *Instance) error {
	if err := m.awaitReady(ctx); err != nil {
		return err
	}
	wctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	var other *Instance
	var refused error
	err := await.Until(wctx, func() (await.Wake, bool) {
		if other = m.enterFree(i); other == nil {
			return await.Wake{}, true
		}
		st, changed := other.watch()
		if !st.ending() {
			refused = errReserved(other)
		}
		return await.Wake{changed}, !st.ending()
	})
	switch {
	case err == nil:
		return refused
	case ctx.Err() != nil:
		return errors.Wrapf(ctx.Err(), "waiting for the end of an earlier %s %s", i.kind, i.id)
	}
	return errReserved(other)
}

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
