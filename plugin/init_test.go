// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/deprecation"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/services/warning"
	"github.com/containerd/plugin"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/shimyard/shimyard/manager"
)

// daemon initializes our plugins as containerd's server does.
type daemon struct {
	t   *testing.T
	ctx context.Context
	set *plugin.Set
	dir string
}

func newDaemon(t *testing.T) *daemon {
	ctx, _ := logged(t)
	dir, err := os.MkdirTemp("", "sy")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return &daemon{t: t, ctx: ctx, set: plugin.NewPluginSet(), dir: dir}
}

// with adds another plugin's instance.
func (d *daemon) with(t plugin.Type, id string, instance any) {
	r := plugin.Registration{Type: t, ID: id, InitFn: func(*plugin.InitContext) (any, error) { return instance, nil }}
	require.NoError(d.t, d.set.Add(r.Init(plugin.NewContext(d.ctx, d.set, nil))))
}

// withAll adds all that ours need.
func (d *daemon) withAll() {
	db, err := bbolt.Open(filepath.Join(d.dir, "meta.db"), 0o600, nil)
	require.NoError(d.t, err)
	d.t.Cleanup(func() { require.NoError(d.t, db.Close()) })
	d.with(plugins.MetadataPlugin, "bolt", metadata.NewDB(db, nil, nil))
	d.with(plugins.EventPlugin, "exchange", exchange.NewExchange())
	d.with(plugins.WarningPlugin, "deprecations", &warner{})
}

type warner struct{ warning.Service }

func (*warner) Emit(context.Context, deprecation.Warning) {}

// outcome of an InitFn: readiness is what the daemon would still wait for, fatal whether an error would have stopped
// it.
type outcome struct {
	instance  any
	err       error
	fatal     bool
	readiness int
	meta      plugin.Meta
}

func (d *daemon) init(uri, config string) (o outcome) {
	ic := plugin.NewContext(d.ctx, d.set, map[string]string{
		plugins.PropertyRootDir:      filepath.Join(d.dir, "root", uri),
		plugins.PropertyStateDir:     filepath.Join(d.dir, "state", uri),
		plugins.PropertyGRPCAddress:  filepath.Join(d.dir, "grpc"),
		plugins.PropertyTTRPCAddress: filepath.Join(d.dir, "ttrpc"),
	})
	if c := registration(uri).Config; c != nil {
		var err error
		ic.Config, err = load(d.t, d.ctx, "version = 4\n"+config).Decode(d.ctx, uri, c)
		require.NoError(d.t, err)
	}
	ic.RegisterReadiness = func() func() {
		o.fatal = true
		o.readiness++
		return func() { o.readiness-- }
	}
	p := registration(uri).Init(ic)
	require.NoError(d.t, d.set.Add(p))
	o.instance, o.err = p.Instance()
	o.meta = p.Meta
	if c, ok := o.instance.(interface{ Close() error }); ok && o.err == nil {
		d.t.Cleanup(func() { require.NoError(d.t, c.Close()) })
	}
	return o
}

const sockets = "[plugins.'io.containerd.shim.v1.manager']\nsocket_dir = '/tmp/sy'\nenv = ['A=1', 'PATH=/x']\n"

func TestInitOfAllThree(t *testing.T) {
	d := newDaemon(t)
	d.withAll()
	for _, c := range []struct {
		uri    string
		config string
	}{{shimURI, sockets}, {taskURI, "[plugins.'io.containerd.runtime.v2.task']\nplatforms = ['linux/arm64']\n"},
		{sandboxURI, ""}} {
		o := d.init(c.uri, c.config)
		require.NoError(t, o.err, c.uri)
		require.Zero(t, o.readiness, "the daemon would never be ready: %s", c.uri)
		switch i := o.instance.(type) {
		case *manager.ShimManager:
			require.Equal(t, shimURI, c.uri)
			require.Equal(t, []string{"A=1", "PATH=/x"}, i.Env())
		case *manager.TaskManager:
			require.Equal(t, taskURI, c.uri)
			require.Equal(t, "fifo,binary,binary-v2,file", o.meta.Exports["log-uri-schemes"])
			require.Len(t, o.meta.Platforms, 1)
			require.Equal(t, "arm64", o.meta.Platforms[0].Architecture)
		case *manager.SandboxController:
			require.Equal(t, sandboxURI, c.uri)
		default:
			t.Fatalf("%s made a %T", c.uri, i)
		}
	}
}

// TestCVE202425621: what an upgrade finds open to others is closed by the start of the daemon.
func TestCVE202425621(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs modes of files")
	}
	d := newDaemon(t)
	d.withAll()
	want := make(map[string]os.FileMode)
	for _, c := range []struct {
		uri  string
		mode os.FileMode
	}{{taskURI, 0o755}, {sandboxURI, 0o700}} {
		for _, kind := range []string{"root", "state"} {
			dir := filepath.Join(d.dir, kind, c.uri)
			space := filepath.Join(dir, "k8s.io")
			require.NoError(t, os.MkdirAll(space, 0o755))
			require.NoError(t, os.Chmod(dir, 0o777))
			require.NoError(t, os.Chmod(space, 0o777))
			want[dir], want[space] = c.mode, 0o755
		}
	}
	require.NoError(t, d.init(shimURI, sockets).err)
	require.NoError(t, d.init(taskURI, "").err)
	require.NoError(t, d.init(sandboxURI, "").err)
	for dir, mode := range want {
		info, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), dir)
	}
}

func TestBadConfigStopsTheDaemon(t *testing.T) {
	d := newDaemon(t)
	d.withAll()
	o := d.init(shimURI, "[plugins.'io.containerd.shim.v1.manager']\nsocket_dir = 'relative'\n")
	require.EqualError(t, o.err,
		`cannot use the config section [plugins.'io.containerd.shim.v1.manager']: key socket_dir: "relative" is not an absolute path`)
	require.True(t, o.fatal)
	require.Zero(t, o.readiness)
}

func TestBadTypeInConfigStopsTheDaemon(t *testing.T) {
	d := newDaemon(t)
	d.withAll()
	o := d.init(shimURI, "[plugins.'io.containerd.shim.v1.manager']\nenv = 'A=1'\n")
	require.ErrorContains(t, o.err,
		`cannot use the config section [plugins.'io.containerd.shim.v1.manager']: key env: `)
	require.True(t, o.fatal)
}

func TestBadPlatformStopsTheDaemon(t *testing.T) {
	d := newDaemon(t)
	d.withAll()
	require.NoError(t, d.init(shimURI, sockets).err)
	o := d.init(taskURI, "[plugins.'io.containerd.runtime.v2.task']\nplatforms = ['a/b/c/d']\n")
	require.ErrorContains(t, o.err,
		"cannot use the config section [plugins.'io.containerd.runtime.v2.task']: key platforms: ")
	require.True(t, o.fatal)
	require.Zero(t, o.readiness)
}

// Whoever disables a plugin that ours need gets what containerd does in such a case: a daemon without a runtime.
func TestMissingPluginIsLeftToTheDaemon(t *testing.T) {
	for _, uri := range ourURIs {
		o := newDaemon(t).init(uri, "")
		require.ErrorIs(t, o.err, plugin.ErrPluginNotFound, uri)
		require.False(t, o.fatal, uri)
	}
}

func TestWrongInstanceStopsTheDaemon(t *testing.T) {
	const tail = "; all three of Shimyard's plugins must be registered together, after all others"
	for _, c := range []struct {
		uri   string
		wrong plugin.Type
		want  string
	}{
		{shimURI, plugins.MetadataPlugin,
			"cannot start io.containerd.shim.v1.manager: it needs a *metadata.DB from the plugin io.containerd.metadata.v1 and got a string"},
		{shimURI, plugins.EventPlugin,
			"cannot start io.containerd.shim.v1.manager: it needs a *exchange.Exchange from the plugin io.containerd.event.v1 and got a string"},
		{taskURI, plugins.ShimPlugin,
			"cannot start io.containerd.runtime.v2.task: it needs a *manager.ShimManager from the plugin io.containerd.shim.v1 and got a string"},
		{taskURI, plugins.WarningPlugin,
			"cannot start io.containerd.runtime.v2.task: it needs a warning.Service from the plugin io.containerd.warning.v1 and got a string"},
		{taskURI, plugins.MountManagerPlugin,
			"cannot start io.containerd.runtime.v2.task: it needs a mount.Manager from the plugin io.containerd.mount-manager.v1 and got a string"},
		{sandboxURI, plugins.ShimPlugin,
			"cannot start io.containerd.sandbox.controller.v1.shim: it needs a *manager.ShimManager from the plugin io.containerd.shim.v1 and got a string"},
	} {
		d := newDaemon(t)
		for t, right := range map[plugin.Type]any{
			plugins.MetadataPlugin:     (*metadata.DB)(nil),
			plugins.EventPlugin:        exchange.NewExchange(),
			plugins.ShimPlugin:         (*manager.ShimManager)(nil),
			plugins.WarningPlugin:      &warner{},
			plugins.MountManagerPlugin: struct{ mount.Manager }{},
		} {
			if t == c.wrong {
				right = "something else"
			}
			d.with(t, map[bool]string{true: "exchange", false: "other"}[t == plugins.EventPlugin], right)
		}
		ic := plugin.NewContext(d.ctx, d.set, nil)
		fatal := 0
		ic.RegisterReadiness = func() func() { fatal++; return func() { fatal++ } }
		ic.Config = registration(c.uri).Config
		_, err := registration(c.uri).InitFn(ic)
		require.EqualError(t, err, c.want+tail)
		require.Equal(t, 2, fatal, "readiness registered and released")
	}
}

func TestForeignConfigTypeStopsTheDaemon(t *testing.T) {
	d := newDaemon(t)
	ic := plugin.NewContext(d.ctx, d.set, nil)
	ic.Config = &ShimConfig{}
	var c ShimConfig
	require.EqualError(t, readConfig(ic, shimURI, &c),
		"cannot start io.containerd.shim.v1.manager: its config is a *plugin.ShimConfig instead of the *plugin.section that was registered")
}

func TestLogURISchemes(t *testing.T) {
	require.Equal(t, []string{"binary", "binary-v2", "file", "npipe"}, logURISchemes("windows"))
	require.Equal(t, []string{"fifo", "binary", "binary-v2", "file"}, logURISchemes("freebsd"))
}
