// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/shimclient"
)

// Which section counts: the exact name, the exact path, then the longest pattern.
func TestRuntimeSection(t *testing.T) {
	named := func(name string) RuntimeConfig { return RuntimeConfig{Env: []string{"SECTION=" + name}} }
	c := &Config{Runtimes: map[string]RuntimeConfig{}}
	for _, name := range []string{
		"io.containerd.kata.v2", "/opt/kata/bin/shim", "io.containerd.*", "io.containerd.kata*", "/opt/*/bin/*",
		"io.containerd.wasm?????.v1",
		"io.containerd.wasm*.v1.but.longer", "a.?", "a.*",
	} {
		c.Runtimes[name] = named(name)
	}
	for b, want := range map[[2]string]string{
		{"io.containerd.kata.v2", "/opt/kata/bin/shim"}:      "io.containerd.kata.v2",
		{"io.containerd.kata.v3", "/opt/kata/bin/shim"}:      "/opt/kata/bin/shim",
		{"/opt/kata/bin/shim", "/opt/kata/bin/shim"}:         "/opt/kata/bin/shim",
		{"io.containerd.kata-qemu.v2", "/usr/bin/kata-qemu"}: "io.containerd.kata*",
		{"io.containerd.runc.v2", "/usr/bin/shim"}:           "io.containerd.*",
		{"io.containerd.runc.v2", "/opt/runc/bin/shim"}:      "io.containerd.*", // the longer of the two
		{"/opt/x/bin/y", "/opt/x/bin/y"}:                     "/opt/*/bin/*",
		{"/opt/x/y/bin/y", "/opt/x/y/bin/y"}:                 "",
		{"io.containerd.wasmtime.v1", ""}:                    "io.containerd.*",
		{"io.containerd.wasmedge.v1", ""}:                    "io.containerd.*",
		{"io.containerd.wasmwasmx.v1", ""}:                   "io.containerd.wasm?????.v1",
		{"a.b", ""}:                                          "a.*", // as long, and first
		{"io.containerd.*", ""}:                              "io.containerd.*",
		{"other", "/usr/bin/other"}:                          "",
	} {
		r := c.runtime(shimclient.Binary{Runtime: b[0], Path: b[1]})
		if want == "" {
			require.Empty(t, r.Env, b)
			continue
		}
		require.Equal(t, named(want).Env, r.Env, b)
	}
}

// A family leaves its runtimes what it does not say: those of runc stay warm.
func TestPoolOfFamily(t *testing.T) {
	c := &Config{WarmLimit: 1, Runtimes: map[string]RuntimeConfig{
		"io.containerd.*":      {Pool: &PoolConfig{Warm: -1, Reuse: 7, Share: -1}},
		"io.containerd.kata.*": {Pool: &PoolConfig{Warm: 2, Reuse: -1, Share: 3}},
	}}
	require.Equal(t, PoolConfig{Warm: 4, Reuse: 7, Share: 1}, c.pool(shimclient.Binary{Runtime: plugins.RuntimeRuncV2}))
	require.Equal(t, PoolConfig{Warm: 0, Reuse: 7, Share: 1},
		c.pool(shimclient.Binary{Runtime: "io.containerd.runsc.v1"}))
	require.Equal(t, PoolConfig{Warm: 2, Reuse: 100, Share: 3},
		c.pool(shimclient.Binary{Runtime: "io.containerd.kata.v2"}))
}

func TestBadFamilies(t *testing.T) {
	c := &Config{Runtimes: map[string]RuntimeConfig{"io.[": {}}}
	require.ErrorIs(t, c.checkRuntimes(), errdefs.ErrInvalidArgument)
	c = &Config{Runtimes: map[string]RuntimeConfig{"io.*": {Path: "/bin/shim"}}}
	require.ErrorContains(t, c.checkRuntimes(), "a family has no path")
	c = &Config{Runtimes: map[string]RuntimeConfig{"io.*": {}, "io.containerd.kata.v2": {Path: "/bin/shim"}}}
	require.NoError(t, c.checkRuntimes())
}

// The cgroup of the config is for those whose clients name none, and never gets lost without a word.
func TestShimCgroupOfConfig(t *testing.T) {
	c := &Config{Runtimes: map[string]RuntimeConfig{"io.containerd.*": {ShimCgroup: "/shims"}}}
	runc := shimclient.Binary{Runtime: plugins.RuntimeRuncV2, Path: "/bin/" + runcShim}
	given := func(o *runcoptions.Options) *anypb.Any {
		a, err := typeurl.MarshalAnyToProto(o)
		require.NoError(t, err)
		return a
	}
	for name, x := range map[string]struct {
		opts *anypb.Any
		want *runcoptions.Options
	}{
		"none given": {nil, &runcoptions.Options{ShimCgroup: "/shims"}},
		"others given": {given(&runcoptions.Options{BinaryName: "crun"}),
			&runcoptions.Options{BinaryName: "crun", ShimCgroup: "/shims"}},
		"another given": {given(&runcoptions.Options{ShimCgroup: "/own"}), &runcoptions.Options{ShimCgroup: "/own"}},
	} {
		got, err := c.startOptions(runc, x.opts)
		require.NoError(t, err, name)
		var o runcoptions.Options
		require.NoError(t, typeurl.UnmarshalTo(got, &o), name)
		require.Equal(t, x.want.String(), o.String(), name)
	}
	got, err := c.startOptions(shimclient.Binary{Runtime: "other.runc.v2", Path: "/bin/other"}, nil)
	require.NoError(t, err)
	require.Nil(t, got, "no section says so")
	_, err = c.startOptions(shimclient.Binary{Runtime: "io.containerd.kata.v2", Path: "/bin/kata"}, nil)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = c.startOptions(runc, &anypb.Any{TypeUrl: "some.other.Options"})
	require.ErrorContains(t, err, `"some.other.Options"`)
	_, err = c.startOptions(runc, &anypb.Any{TypeUrl: given(&runcoptions.Options{}).TypeUrl, Value: []byte{0xff}})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}
