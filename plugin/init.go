// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/services/warning"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/plugin"
	"github.com/pkg/errors"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shimyard/shimyard/manager"
	"github.com/shimyard/shimyard/shimclient"
)

// Each InitFn first looks up what it needs. An error there is passed on as it is, and the daemon does what it does for
// every plugin that lacks another: it logs it and goes on, as the other may have been disabled on purpose. From then
// on errors are fatal.

func initShimManager(ic *plugin.InitContext) (any, error) {
	db, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	events, err := ic.GetByID(plugins.EventPlugin, "exchange")
	if err != nil {
		return nil, err
	}
	defer fatal(ic)()

	metadataDB, err := instance[*metadata.DB](db, plugins.MetadataPlugin, shimURI)
	if err != nil {
		return nil, err
	}
	config := manager.Config{
		GRPCAddress:  ic.Properties[plugins.PropertyGRPCAddress],
		TTRPCAddress: ic.Properties[plugins.PropertyTTRPCAddress],
		Sandboxes:    metadata.NewSandboxStore(metadataDB),
		Containers:   metadata.NewContainerStore(metadataDB),
		Tasks:        dirsOf(ic, taskURI),
		Boxes:        dirsOf(ic, sandboxURI),
	}
	if config.Events, err = instance[*exchange.Exchange](events, plugins.EventPlugin, shimURI); err != nil {
		return nil, err
	}
	var section ShimConfig
	if err := readConfig(ic, shimURI, &section); err != nil {
		return nil, err
	}
	if err := section.apply(&config); err != nil {
		return nil, badConfig(err, shimURI)
	}
	if err := shimclient.SecureSocketDir(config.SocketDir); err != nil {
		return nil, badConfig(errors.Wrap(err, "key socket_dir"), shimURI)
	}
	// containerd serves the default registry at its metrics address.
	if err := manager.RegisterMetrics(prometheus.DefaultRegisterer, moduleVersion(), version.Version); err != nil {
		return nil, err
	}
	return manager.New(ic.Context, config)
}

// modulePath is the module that holds this package.
const modulePath = "github.com/shimyard/shimyard"

// moduleVersion is the version of this module that the daemon was built with.
func moduleVersion() string {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range append(build.Deps, &build.Main) {
		if m.Path == modulePath {
			return m.Version
		}
	}
	return "unknown"
}

func initTaskManager(ic *plugin.InitContext) (any, error) {
	shims, err := ic.GetSingle(plugins.ShimPlugin)
	if err != nil {
		return nil, err
	}
	warnings, err := ic.GetSingle(plugins.WarningPlugin)
	if err != nil {
		return nil, err
	}
	// A daemon without a mount manager runs all containers whose mounts need none.
	mounts, err := ic.GetSingle(plugins.MountManagerPlugin)
	if err != nil && !errors.Is(err, plugin.ErrPluginNotFound) {
		return nil, err
	}
	defer fatal(ic)()

	shimManager, err := instance[*manager.ShimManager](shims, plugins.ShimPlugin, taskURI)
	if err != nil {
		return nil, err
	}
	warner, err := instance[warning.Service](warnings, plugins.WarningPlugin, taskURI)
	if err != nil {
		return nil, err
	}
	var mountManager mount.Manager
	if mounts != nil {
		if mountManager, err = instance[mount.Manager](mounts, plugins.MountManagerPlugin, taskURI); err != nil {
			return nil, err
		}
	}
	var section TaskConfig
	if err := readConfig(ic, taskURI, &section); err != nil {
		return nil, err
	}
	if ic.Meta.Platforms, err = section.platforms(); err != nil {
		return nil, badConfig(err, taskURI)
	}
	if ic.Meta.Exports == nil {
		ic.Meta.Exports = make(map[string]string)
	}
	ic.Meta.Exports["log-uri-schemes"] = strings.Join(logURISchemes(runtime.GOOS), ",")
	emitPlatformWarnings(ic.Context, warner)
	return manager.NewTaskManager(mountManager, shimManager)
}

func initSandboxController(ic *plugin.InitContext) (any, error) {
	shims, err := ic.GetSingle(plugins.ShimPlugin)
	if err != nil {
		return nil, err
	}
	defer fatal(ic)()

	shimManager, err := instance[*manager.ShimManager](shims, plugins.ShimPlugin, sandboxURI)
	if err != nil {
		return nil, err
	}
	return manager.NewSandboxController(shimManager)
}

// dirsOf are the directories of another plugin: containerd gives each one of its own below the same two parents.
func dirsOf(ic *plugin.InitContext, uri string) manager.Dirs {
	return manager.Dirs{
		Root:  filepath.Join(filepath.Dir(ic.Properties[plugins.PropertyRootDir]), uri),
		State: filepath.Join(filepath.Dir(ic.Properties[plugins.PropertyStateDir]), uri),
	}
}

// fatal makes the daemon stop if the InitFn that calls it fails: it only logs the error of an InitFn that has not
// registered readiness, and would come up without a runtime. The returned function must be called when the InitFn
// returns.
func fatal(ic *plugin.InitContext) (release func()) {
	if ic.RegisterReadiness == nil {
		return func() {}
	}
	return ic.RegisterReadiness()
}

// instance checks the type of another plugin's instance.
func instance[T any](v any, of plugin.Type, neededBy string) (T, error) {
	t, ok := v.(T)
	if !ok {
		return t, errors.Errorf("cannot start %s: it needs a %v from the plugin %s and got a %T; "+
			"all three of Shimyard's plugins must be registered together, after all others", neededBy,
			reflect.TypeFor[T](), of, v)
	}
	return t, nil
}

// readConfig decodes a plugin's section into a struct and reports the keys that it does not know.
func readConfig(ic *plugin.InitContext, uri string, into any) error {
	s, ok := ic.Config.(*section)
	if !ok {
		return errors.Errorf("cannot start %s: its config is a %T instead of the %T that was registered", uri,
			ic.Config, s)
	}
	unknown, err := s.decode(into, sectionKeys[uri])
	if err != nil {
		return badConfig(err, uri)
	}
	warnUnknown(ic.Context, uri, unknown)
	return nil
}

func badConfig(err error, uri string) error {
	return errors.Wrapf(err, "cannot use the config section [plugins.'%s']", uri)
}

// logURISchemes are the kinds of log address that shims on an operating system take.
func logURISchemes(goos string) []string {
	if goos == "windows" {
		return []string{"binary", "binary-v2", "file", "npipe"}
	}
	return []string{"fifo", "binary", "binary-v2", "file"}
}
