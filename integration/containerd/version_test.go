// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestJoin(t *testing.T) {
	for _, c := range []struct{ containerd, ours, want string }{
		{"v2.4.2", "v0.1.0", "2.4.2+shimyard.0.1.0"},
		{"2.4.2+unknown", "devel", "2.4.2+shimyard.devel"},
		{"v2.4.3-0.20260101000000-0123456789ab", "g0123456789ab.modified",
			"2.4.3-0.20260101000000-0123456789ab+shimyard.g0123456789ab.modified"},
		{"v2.5.0-rc.1", "v0.1.1-0.20260101000000-0123456789ab+dirty",
			"2.5.0-rc.1+shimyard.0.1.1-0.20260101000000-0123456789ab.dirty"},
		{"v2.4.2", "..a  b/c..", "2.4.2+shimyard.a.b.c"},
	} {
		require.Equal(t, c.want, join(c.containerd, c.ours))
	}
}

func TestVersionsFromBuildInfo(t *testing.T) {
	dep := func(path, version string, replace *debug.Module) *debug.Module {
		return &debug.Module{Path: path, Version: version, Replace: replace}
	}
	checkout := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"},
		{Key: "vcs.modified", Value: "true"}}
	for name, c := range map[string]struct {
		info             debug.BuildInfo
		containerd, ours string
	}{
		"nothing known": {debug.BuildInfo{}, "fallback", "devel"},
		"as in our checkout": {debug.BuildInfo{
			Deps: []*debug.Module{dep(containerdModule, "v2.4.2", nil),
				dep(ourModule, "v0.0.0", &debug.Module{Path: "../"})},
			Settings: checkout,
		}, "v2.4.2", "g0123456789ab.modified"},
		"a clean checkout": {debug.BuildInfo{Settings: checkout[:1]}, "fallback", "g0123456789ab"},
		"both by version": {debug.BuildInfo{
			Deps:     []*debug.Module{dep(containerdModule, "v2.4.3", nil), dep(ourModule, "v0.2.0", nil)},
			Settings: checkout,
		}, "v2.4.3", "v0.2.0"},
		"containerd from a fork": {debug.BuildInfo{
			Deps: []*debug.Module{dep(containerdModule, "v2.4.2", dep("example.com/fork", "v2.4.9", nil))},
		}, "v2.4.9", "devel"},
		"containerd from a directory": {debug.BuildInfo{
			Deps: []*debug.Module{dep(containerdModule, "v2.4.2", dep("/src/containerd", "", nil))},
		}, "fallback", "devel"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.containerd, containerdVersion(&c.info, "fallback"))
			require.Equal(t, c.ours, ourVersion(&c.info))
		})
	}
}
