// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
)

// testNamespace is the namespace of tests that need only one.
const testNamespace = "test"

func named(ctx context.Context, id string) string {
	ns, _ := namespaces.Namespace(ctx)
	return ns + "/" + id
}

// sandboxStore is a metadata store of sandboxes. What a test does not expect to be called is not there.
type sandboxStore struct {
	sandbox.Store

	mu  sync.Mutex
	ids map[string]bool
	err error
}

func (s *sandboxStore) add(ids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = make(map[string]bool)
	}
	for _, id := range ids {
		s.ids[testNamespace+"/"+id] = true
	}
}

func (s *sandboxStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *sandboxStore) Get(ctx context.Context, id string) (sandbox.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return sandbox.Sandbox{}, s.err
	}
	if !s.ids[named(ctx, id)] {
		return sandbox.Sandbox{}, errors.Wrapf(errdefs.ErrNotFound, "sandbox %s", id)
	}
	return sandbox.Sandbox{ID: id}, nil
}

// containerStore is a metadata store of containers.
type containerStore struct {
	containers.Store

	mu       sync.Mutex
	runtimes map[string]containers.RuntimeInfo
}

// add a container with its runtime and, which may be nil, the runtime's options.
func (s *containerStore) add(id, runtime string, options typeurl.Any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runtimes == nil {
		s.runtimes = make(map[string]containers.RuntimeInfo)
	}
	s.runtimes[testNamespace+"/"+id] = containers.RuntimeInfo{Name: runtime, Options: options}
}

func (s *containerStore) Get(ctx context.Context, id string) (containers.Container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, ok := s.runtimes[named(ctx, id)]
	if !ok {
		return containers.Container{}, errors.Wrapf(errdefs.ErrNotFound, "container %s", id)
	}
	return containers.Container{ID: id, Runtime: info}, nil
}

// mountManager stands for containerd's: it does what is of a type that begins with "x-", and leaves the rest.
type mountManager struct {
	mount.Manager

	mu      sync.Mutex
	active  map[string]mount.ActivationInfo
	options map[string]mount.ActivateOptions // of the last activation of a name
	fail    error                            // of the next activations
	undone  []string
}

func (m *mountManager) Activate(ctx context.Context, name string, mounts []mount.Mount,
	opts ...mount.ActivateOpt) (mount.ActivationInfo, error) {
	var o mount.ActivateOptions
	for _, opt := range opts {
		opt(&o)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.options == nil {
		m.active, m.options = make(map[string]mount.ActivationInfo), make(map[string]mount.ActivateOptions)
	}
	m.options[name] = o
	if m.fail != nil {
		return mount.ActivationInfo{}, m.fail
	}
	key := named(ctx, name)
	if _, ok := m.active[key]; ok {
		return mount.ActivationInfo{}, errors.Wrapf(errdefs.ErrAlreadyExists, "activation %s", name)
	}
	info := mount.ActivationInfo{Name: name, Labels: o.Labels}
	for _, mt := range mounts {
		if !strings.HasPrefix(mt.Type, "x-") || slices.Contains(o.AllowMountTypes, mt.Type) {
			info.System = append(info.System, mt)
		}
	}
	if len(info.System) == len(mounts) {
		return mount.ActivationInfo{}, errdefs.ErrNotImplemented
	}
	m.active[key] = info
	return info, nil
}

func (m *mountManager) Deactivate(ctx context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.undone = append(m.undone, name)
	if _, ok := m.active[named(ctx, name)]; !ok {
		return errors.Wrapf(errdefs.ErrNotFound, "activation %s", name)
	}
	delete(m.active, named(ctx, name))
	return nil
}

func (m *mountManager) Info(ctx context.Context, name string) (mount.ActivationInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	info, ok := m.active[named(ctx, name)]
	if !ok {
		return info, errors.Wrapf(errdefs.ErrNotFound, "activation %s", name)
	}
	return info, nil
}

func (m *mountManager) failWith(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *mountManager) optionsOf(name string) mount.ActivateOptions {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.options[name]
}

func (m *mountManager) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, i := range m.active {
		names = append(names, i.Name)
	}
	return names
}

func (m *mountManager) deactivations() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.undone)
}
