// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/crinode"
)

// plugin is an NRI plugin that records what it is told.
type plugin struct {
	t      *testing.T
	stub   stub.Stub
	synced chan synced

	// create and update are asked when a container is created or updated; nil adjusts nothing.
	create func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error)
	// evict is asked for whom to evict when a container is created.
	evict func() []*api.ContainerEviction

	mu     sync.Mutex
	events []string
	closed bool
}

// synced is what a plugin is told when it registers.
type synced struct {
	pods       []*api.PodSandbox
	containers []*api.Container
}

// connect registers the plugin and returns it with what it was told of the node's state. It leaves when the test
// ends.
func connect(t *testing.T, index string, change ...func(*plugin)) (*plugin, synced) {
	t.Helper()
	p := &plugin{t: t, synced: make(chan synced, 1)}
	for _, c := range change {
		c(p)
	}
	s, err := stub.New(p, stub.WithPluginName("conformance"), stub.WithPluginIdx(index), stub.WithSocketPath(Socket),
		stub.WithOnClose(func() { p.mu.Lock(); p.closed = true; p.mu.Unlock() }),
		stub.WithTTRPCOptions(nil, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.intercept)}))
	require.NoError(t, err)
	p.stub = s
	require.NoError(t, s.Start(context.Background()))
	t.Cleanup(s.Stop)
	return p, <-p.synced
}

// intercept adds evictions to an answer: the stub has no other way.
func (p *plugin) intercept(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo,
	method ttrpc.Method) (any, error) {
	resp, err := method(ctx, u)
	if r, ok := resp.(*api.CreateContainerResponse); ok && err == nil && p.evict != nil {
		r.Evict = p.evict()
	}
	return resp, err
}

func (p *plugin) record(event string, c *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c != nil {
		event += " " + c.Name
	}
	p.events = append(p.events, event)
}

// heard is everything up to now, in order.
func (p *plugin) heard() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

// await waits until the plugin has heard the event.
func (p *plugin) await(event string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return slices.Contains(p.heard(), event) }, crinode.Patience, crinode.Tick,
		"waiting for %s", event)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox,
	containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.synced <- synced{pods, containers}
	return nil, nil
}

func (p *plugin) RunPodSandbox(context.Context, *api.PodSandbox) error {
	p.record("RunPodSandbox", nil)
	return nil
}

func (p *plugin) StopPodSandbox(context.Context, *api.PodSandbox) error {
	p.record("StopPodSandbox", nil)
	return nil
}

func (p *plugin) RemovePodSandbox(context.Context, *api.PodSandbox) error {
	p.record("RemovePodSandbox", nil)
	return nil
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment,
	[]*api.ContainerUpdate, error) {
	p.record("CreateContainer", c)
	if p.create == nil {
		return nil, nil, nil
	}
	return p.create(c)
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.record("PostCreateContainer", c)
	return nil
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.record("StartContainer", c)
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.record("PostStartContainer", c)
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container,
	r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.record("UpdateContainer", c)
	if p.update == nil {
		return nil, nil
	}
	return p.update(c, r)
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.record("PostUpdateContainer", c)
	return nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.record("StopContainer", c)
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.record("RemoveContainer", c)
	return nil
}
