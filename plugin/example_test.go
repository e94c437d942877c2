// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"fmt"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	shimyard "github.com/shimyard/shimyard/plugin"
)

// register stands in for the packages whose init functions register a daemon's plugins.
func register(rs ...plugin.Registration) {
	registry.Reset()
	for _, r := range rs {
		r.InitFn = func(*plugin.InitContext) (any, error) { return nil, nil }
		registry.Register(&r)
	}
}

// A main package that links all of containerd's plugins (a blank import of its cmd/containerd/builtins) calls Replace
// before it runs containerd's command.App: whatever depends on the runtime gets this one.
func ExampleReplace() {
	register(
		plugin.Registration{Type: plugins.EventPlugin, ID: "exchange"},
		plugin.Registration{Type: plugins.MetadataPlugin, ID: "bolt"},
		plugin.Registration{Type: plugins.ShimPlugin, ID: "manager", Requires: []plugin.Type{plugins.EventPlugin}},
		plugin.Registration{Type: plugins.RuntimePluginV2, ID: "task", Requires: []plugin.Type{plugins.ShimPlugin}},
		plugin.Registration{Type: plugins.SandboxControllerPlugin, ID: "shim",
			Requires: []plugin.Type{plugins.ShimPlugin}},
	)
	defer registry.Reset()

	shimyard.Replace()

	for _, r := range registry.Graph(nil) {
		fmt.Println(r.URI())
	}
	// Output:
	// io.containerd.event.v1.exchange
	// io.containerd.metadata.v1.bolt
	// io.containerd.shim.v1.manager
	// io.containerd.runtime.v2.task
	// io.containerd.sandbox.controller.v1.shim
}

// A program that embeds parts of containerd, and links neither its core/runtime/v2 nor its plugins/sandbox, registers
// the runtime beside the plugins that it does link.
func ExampleRegister() {
	register(
		plugin.Registration{Type: plugins.EventPlugin, ID: "exchange"},
		plugin.Registration{Type: plugins.MetadataPlugin, ID: "bolt"},
	)
	defer registry.Reset()

	shimyard.Register()

	for _, r := range registry.Graph(nil) {
		fmt.Println(r.URI())
	}
	// Output:
	// io.containerd.event.v1.exchange
	// io.containerd.metadata.v1.bolt
	// io.containerd.shim.v1.manager
	// io.containerd.runtime.v2.task
	// io.containerd.sandbox.controller.v1.shim
}
