// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"

	apitypes "github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/mounts"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// mapped are the options of a create with an id-mapped mount.
func (y *yard) mapped() runtime.CreateOpts {
	y.Helper()
	spec := args("sleep")
	spec.Mounts = []specs.Mount{{Destination: "/data", UIDMappings: []specs.LinuxIDMapping{{HostID: 1000, Size: 1}}}}
	o := y.opts("sleep")
	o.Spec = anyOf(y, spec)
	return o
}

// TestIDMapCheck: runc ignores what it does not know, so files would get wrong owners; the answer is cached by what
// gave it.
func TestIDMapCheck(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		info shimtest.InfoAnswer
		ok   bool
	}{
		"supported":     {shimtest.InfoAnswer{IDMap: &yes}, true},
		"not supported": {shimtest.InfoAnswer{IDMap: &no}, false},
		"not told":      {shimtest.InfoAnswer{}, false},
		"no features":   {shimtest.InfoAnswer{NoFeatures: true}, false},
		"not OCI's":     {shimtest.InfoAnswer{ForeignFeatures: true}, true},
		"info fails":    {shimtest.InfoAnswer{Fail: "no info"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			y := runcYard(t, shimtest.Scenario{Info: c.info})
			o := y.mapped()
			o.Runtime = plugins.RuntimeRuncV2
			_, err := y.tasks.Create(y.ctx, "c1", o)
			if c.ok {
				require.NoError(t, err)
				y.remove("c1")
			} else {
				require.Error(t, err)
				require.Equal(t, c.info.Fail == "", errdefs.IsNotImplemented(err), "%v", err)
				if c.info.Fail == "" {
					require.ErrorContains(t, err, `"/data"`)
					require.ErrorContains(t, err, plugins.RuntimeRuncV2)
				}
				require.Zero(t, y.shim.Count(shimtest.KindExec, "start"))
			}
			y.empty()
		})
	}
}

func TestInfoIsCached(t *testing.T) {
	yes := true
	y := runcYard(t, shimtest.Scenario{Info: shimtest.InfoAnswer{IDMap: &yes}})
	ask := func(o runtime.CreateOpts, want int) {
		t.Helper()
		o.Runtime = plugins.RuntimeRuncV2
		_, err := y.tasks.Create(y.ctx, "c1", o)
		require.NoError(t, err)
		y.remove("c1")
		require.Equal(t, want, y.shim.Count(shimtest.KindExec, "info"))
	}
	ask(y.opts("sleep"), 0)
	ask(y.mapped(), 1)
	ask(y.mapped(), 1)
	o := y.mapped()
	o.RuntimeOptions = anyOf(t, &runcoptions.Options{BinaryName: "crun"})
	ask(o, 2)
	ask(o, 2)
	ask(y.mapped(), 2)
	y.shim.Replace() // an upgrade
	ask(y.mapped(), 3)
	ask(y.mapped(), 3)
	y.empty()
}

// TestMountCapabilities: what the shim says it mounts itself is left to it; an old one says so by an annotation of its
// info.
func TestMountCapabilities(t *testing.T) {
	for _, c := range []struct {
		name              string
		scenario          shimtest.Scenario
		runc              bool
		types, transforms []string
		asked             int
	}{
		{name: "bootstrap", scenario: replying(shimtest.Reply{MountTypes: []string{"x-disk"},
			MountTransforms: []string{"format"}}),
			types: []string{"x-disk"}, transforms: []string{"format"}},
		{name: "annotation", scenario: shimtest.Scenario{Info: shimtest.InfoAnswer{Annotations: map[string]string{
			"containerd.io/runtime-allow-mounts": "x-disk,format/*,erofs"}}}, types: []string{"x-disk", "erofs"},
			transforms: []string{"format"}, asked: 1},
		{name: "nothing", asked: 1},
		{name: "info fails", scenario: shimtest.Scenario{Info: shimtest.InfoAnswer{Fail: "no info"}}, asked: 1},
		{name: "runc is not asked", runc: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := runcYard(t, c.scenario)
			o := withMount(y.opts("sleep"))
			if c.runc {
				o.Runtime = plugins.RuntimeRuncV2
			}
			_, err := y.tasks.Create(y.ctx, "c1", o)
			require.NoError(t, err)
			got := y.mounts.optionsOf("c1")
			require.Equal(t, c.types, got.AllowMountTypes)
			require.Equal(t, c.transforms, got.AllowTransforms)
			require.Equal(t, map[string]string{"containerd.io/gc.bref.container": "c1"}, got.Labels)
			require.Equal(t, c.asked, y.shim.Count(shimtest.KindExec, "info"))
			y.remove("c1")
			y.empty()
			require.Equal(t, []string{"c1"}, y.mounts.deactivations(), "always, whatever was activated")
		})
	}
}

// TestActivationOfAnEarlierTask is used again, and not undone by a create that fails: it is not that one's.
func TestActivationOfAnEarlierTask(t *testing.T) {
	y := newYard(t, rules(shimtest.Rule{Method: "Create", Times: 1, Code: "Internal", Message: "boom"}))
	_, err := y.mounts.Activate(y.ctx, "c1", []mount.Mount{{Type: "x-disk"}, {Type: "bind", Source: "/earlier"}})
	require.NoError(t, err)
	o := withMount(y.opts("sleep"))
	_, err = y.tasks.Create(y.ctx, "c1", o)
	require.ErrorContains(t, err, "boom")
	require.Empty(t, y.mounts.deactivations())
	require.Equal(t, []string{"c1"}, y.mounts.names())
	_, err = y.tasks.Create(y.ctx, "c1", o)
	require.NoError(t, err)
	creates := y.shim.Find(shimtest.KindRPC, "Create")
	require.Contains(t, string(creates[1].Request), "/earlier", "the shim mounts what the activation left")
	y.restart()
	y.inState("c1", life.Running)
	y.remove("c1")
	require.Empty(t, y.mounts.names(), "a delete deactivates, after a restart too")
	y.empty()
}

// TestNoMountManager: then the shim does all mounts.
func TestNoMountManager(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{})
	y.boot()
	y.m.mounts = mounts.New(nil, y.m.features)
	_, err := y.tasks.Create(y.ctx, "c1", withMount(y.opts("sleep")))
	require.NoError(t, err)
	require.Contains(t, string(y.shim.Find(shimtest.KindRPC, "Create")[0].Request), "x-disk",
		"the shim does all mounts")
	y.remove("c1")
	y.empty()
}

// TestPluginInfo always asks.
func TestPluginInfo(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	options := anyOf(t, &runcoptions.Options{BinaryName: "crun"})
	for n := range 2 {
		got, err := y.tasks.PluginInfo(y.ctx, &apitypes.RuntimeRequest{RuntimePath: y.shim.Path,
			Options: typeurl.MarshalProto(options)})
		require.NoError(t, err)
		info, ok := got.(*apitypes.RuntimeInfo)
		require.True(t, ok)
		require.Equal(t, "io.containerd.fake.v1", info.Name)
		require.Equal(t, n+1, y.shim.Count(shimtest.KindExec, "info"))
	}
	_, err := y.tasks.PluginInfo(y.ctx, &apitypes.Platform{})
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
	_, err = y.tasks.PluginInfo(y.ctx, &apitypes.RuntimeRequest{RuntimePath: "/nowhere/shim"})
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

// TestRuntimeConfig: sections match by the name that Create saw or by the absolute path of the binary.
func TestRuntimeConfig(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{Generation: shimtest.Legacy})
	y.config.Runtimes["io.containerd.fake.v1"] = RuntimeConfig{Path: y.shim.Path}
	y.config.Runtimes[y.shim.Path] = RuntimeConfig{StartProtocol: "legacy"}
	y.boot()
	for _, name := range []string{"io.containerd.fake.v1", y.shim.Path} {
		o := y.opts("sleep")
		o.Runtime, o.RuntimeOptions = name, anyOf(t, &runcoptions.Options{ShimCgroup: "/c"})
		_, err := y.tasks.Create(y.ctx, "c1", o)
		require.NoError(t, err)
		y.remove("c1")
	}
	starts := y.shim.Find(shimtest.KindExec, "start")
	require.Equal(t, "legacy", starts[len(starts)-1].Stdin)
	y.empty()
	require.Equal(t, "io.containerd.runtime.v2.task", y.tasks.ID())
	require.Equal(t, "io.containerd.shim.v1.manager", y.m.ID())
	require.Equal(t, []string{"YARD=1"}, y.m.Env())
	_, err := New(y.ctx, Config{})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	require.Error(t, errors.Cause(err))
}
