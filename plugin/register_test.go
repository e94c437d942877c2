// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager"
)

// register fills containerd's registry for one test, each plugin with an InitFn that returns its full name.
func register(t *testing.T, rs ...plugin.Registration) {
	registry.Reset()
	t.Cleanup(registry.Reset)
	for _, r := range rs {
		r.InitFn = func(*plugin.InitContext) (any, error) { return r.URI(), nil }
		registry.Register(&r)
	}
}

// others are plugins around the runtime as a daemon has them; they depend on it and it depends on them.
func others() []plugin.Registration {
	return []plugin.Registration{
		{Type: plugins.GRPCPlugin, ID: "cri", Requires: []plugin.Type{plugins.SandboxControllerPlugin,
			plugins.RuntimePluginV2}, Config: &struct{}{}},
		{Type: plugins.WarningPlugin, ID: "deprecations"},
		{Type: plugins.InternalPlugin, ID: "restart", Requires: []plugin.Type{"*"}},
		{Type: plugins.MetadataPlugin, ID: "bolt", Requires: []plugin.Type{plugins.EventPlugin}},
		{Type: plugins.EventPlugin, ID: "exchange"},
		{Type: plugins.MountManagerPlugin, ID: "bolt", Requires: []plugin.Type{plugins.MetadataPlugin}},
	}
}

func stock() []plugin.Registration {
	return []plugin.Registration{
		{Type: plugins.SandboxControllerPlugin, ID: "shim",
			Requires: []plugin.Type{plugins.ShimPlugin, plugins.EventPlugin}},
		{Type: plugins.RuntimePluginV2, ID: "task",
			Requires: []plugin.Type{plugins.ShimPlugin, plugins.MountManagerPlugin, plugins.WarningPlugin}},
		{Type: plugins.ShimPlugin, ID: "manager", Requires: []plugin.Type{plugins.EventPlugin, plugins.MetadataPlugin}},
	}
}

var ourURIs = []string{shimURI, taskURI, "io.containerd.sandbox.controller.v1.shim"}

// graph returns the plugins in the order in which they would be started.
func graph() (uris []string, byURI map[string]plugin.Registration) {
	byURI = make(map[string]plugin.Registration)
	for _, r := range registry.Graph(nil) {
		uris = append(uris, r.URI())
		byURI[r.URI()] = r
	}
	return uris, byURI
}

// initResult calls an InitFn that needs nothing.
func initResult(t *testing.T, r plugin.Registration) any {
	v, err := r.InitFn(plugin.NewContext(context.Background(), plugin.NewPluginSet(), nil))
	require.NoError(t, err)
	return v
}

// isOurs tells a registration of ours from one made by register.
func isOurs(r plugin.Registration) bool {
	_, err := r.InitFn(plugin.NewContext(context.Background(), plugin.NewPluginSet(), nil))
	return err != nil // nothing of what it needs is there
}

func TestReplacePutsOursWhereTheStockOnesStood(t *testing.T) {
	register(t, append(others(), stock()...)...)
	before, was := graph()

	Replace()

	after, is := graph()
	require.Equal(t, before, after)
	for uri, r := range was {
		require.Equal(t, r.Requires, is[uri].Requires, uri)
	}
	for _, uri := range ourURIs {
		require.True(t, isOurs(is[uri]), uri)
	}
	for _, r := range others() {
		uri := r.URI()
		require.Equal(t, uri, initResult(t, is[uri]))
		require.True(t, was[uri].Config == is[uri].Config, uri)
	}
}

func TestReplaceAgainChangesNothing(t *testing.T) {
	register(t, append(stock(), others()...)...)
	Replace()
	once, _ := graph()
	Replace()
	twice, is := graph()
	require.Equal(t, once, twice)
	for _, uri := range ourURIs {
		require.True(t, isOurs(is[uri]), uri)
	}
}

func TestReplaceAddsWhatIsMissing(t *testing.T) {
	register(t, append(others(), stock()[0])...)
	Replace()
	uris, is := graph()
	require.Len(t, uris, len(others())+3)
	for _, uri := range ourURIs {
		require.True(t, isOurs(is[uri]), uri)
	}
}

func TestRegister(t *testing.T) {
	register(t, others()...)
	Register()
	_, is := graph()
	for _, uri := range ourURIs {
		require.True(t, isOurs(is[uri]), uri)
	}
}

func TestRegisterRefusesToStandBesideStock(t *testing.T) {
	register(t, append(others(), stock()[1])...)
	before, _ := graph()
	require.PanicsWithError(t,
		"cannot register Shimyard's io.containerd.runtime.v2.task: plugin: id already registered; this daemon links "+
			"containerd's own runtime (core/runtime/v2 or plugins/sandbox), call Replace instead", Register)
	after, _ := graph()
	require.Equal(t, before, after)
}

func TestStockTimeoutsHaveTheirDefaults(t *testing.T) {
	register(t)
	Register()
	require.Equal(t, 5*time.Second, timeout.Get(manager.TimeoutLoad))
	require.Equal(t, 5*time.Second, timeout.Get(manager.TimeoutCleanup))
	require.Equal(t, 3*time.Second, timeout.Get(manager.TimeoutShutdown))
}
