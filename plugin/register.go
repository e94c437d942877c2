// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/shimyard/shimyard/manager"
)

// The ids of the three plugins, as stock containerd calls them, with their full names, which are also the names of
// their sections.
const (
	shimID    = "manager"
	taskID    = "task"
	sandboxID = "shim"

	shimURI = string(plugins.ShimPlugin) + "." + shimID
	taskURI = string(plugins.RuntimePluginV2) + "." + taskID

	sandboxURI = string(plugins.SandboxControllerPlugin) + "." + sandboxID
)

// registrations are new at each call: a daemon decodes its config into the value that a registration points to.
func registrations() []*plugin.Registration {
	return []*plugin.Registration{
		{
			Type: plugins.ShimPlugin,
			ID:   shimID,
			// Not the sandbox controllers: "shim" among them requires this plugin, and the graph must have no circle.
			Requires:        []plugin.Type{plugins.EventPlugin, plugins.MetadataPlugin},
			Config:          newSection(defaultShimConfig()),
			InitFn:          initShimManager,
			ConfigMigration: migrate,
		},
		{
			Type:     plugins.RuntimePluginV2,
			ID:       taskID,
			Requires: []plugin.Type{plugins.ShimPlugin, plugins.MountManagerPlugin, plugins.WarningPlugin},
			Config:   newSection(defaultTaskConfig()),
			InitFn:   initTaskManager,
		},
		{
			Type:     plugins.SandboxControllerPlugin,
			ID:       sandboxID,
			Requires: []plugin.Type{plugins.ShimPlugin, plugins.EventPlugin},
			InitFn:   initSandboxController,
		},
	}
}

// Replace puts Shimyard in the place of the runtime that containerd ships. Call it in main, after all plugins were
// registered (their packages' init functions did that) and before the daemon looks at its config or its flags.
//
// It rebuilds containerd's registry in the order in which plugins would be started. Ours stand where the stock ones
// stood, or at the end if there were none; all others stay as they were registered. Calling it again changes nothing.
// It is not safe to call while something else uses the registry.
func Replace() {
	present := registry.Graph(nil)
	registry.Reset()

	ours := make(map[string]*plugin.Registration)
	for _, r := range registrations() {
		ours[r.URI()] = r
	}
	for i := range present {
		r := &present[i]
		if o, stock := ours[r.URI()]; stock {
			r = o
			delete(ours, r.URI())
		}
		registry.Register(r)
	}
	for _, r := range registrations() {
		if o, missing := ours[r.URI()]; missing {
			registry.Register(o)
		}
	}
	setDefaultTimeouts()
}

// Register registers Shimyard in a daemon that links neither of containerd's packages core/runtime/v2 and
// plugins/sandbox. It panics, as registering plugins does, if a plugin of one of the three names is there already; use
// [Replace] then.
func Register() {
	taken := make(map[string]bool)
	for _, r := range registry.Graph(nil) {
		taken[r.URI()] = true
	}
	ours := registrations()
	for _, r := range ours {
		if taken[r.URI()] {
			panic(fmt.Errorf("cannot register Shimyard's %s: %w; this daemon links containerd's own runtime "+
				"(core/runtime/v2 or plugins/sandbox), call Replace instead", r.URI(), plugin.ErrIDRegistered))
		}
	}
	for _, r := range ours {
		registry.Register(r)
	}
	setDefaultTimeouts()
}

// setDefaultTimeouts gives the stock timeouts their stock defaults. It must happen at registration: the daemon applies
// the [timeouts] of its config before it initializes plugins, and lists all known ones in `config default`.
func setDefaultTimeouts() {
	timeout.Set(manager.TimeoutLoad, 5*time.Second)
	timeout.Set(manager.TimeoutCleanup, 5*time.Second)
	timeout.Set(manager.TimeoutShutdown, 3*time.Second)
}
