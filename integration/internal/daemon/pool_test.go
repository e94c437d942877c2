// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWithPool(t *testing.T) {
	const before = "[plugins.'io.containerd.shim.v1.manager']\nenv = []\n"
	const ours = "/bin/containerd"
	own := func(lines string) string { return before + poolSection + "\n" + lines + "[other]\nshare = 3\n" }
	for name, c := range map[string]struct{ mode, binary, in, want string }{
		"default":             {"", ours, before, before},
		"off":                 {"off", ours, before, before + "\n" + poolSection + "\nwarm = 0\nshare = 1\n"},
		"share8":              {"share8", ours, before, before + "\n" + poolSection + "\nshare = 8\n"},
		"stock":               {"off", "/bin/tools/containerd-stock", before, before},
		"stock, as installed": {"off", "/bin/tools/containerd-stock-2.4.2", before, before},
		"own section": {"off", ours, own("cleanup = 'always'\n"),
			own("warm = 0\nshare = 1\ncleanup = 'always'\n")},
		"own pool":          {"off", ours, own("share = 2\n"), own("share = 2\n")},
		"own section, last": {"share8", ours, before + poolSection, before + poolSection + "\nshare = 8\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(PoolEnv, c.mode)
			got, err := withPool(c.in, c.binary)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
	t.Setenv(PoolEnv, "sometimes")
	_, err := withPool(before, ours)
	require.ErrorContains(t, err, "POOL=sometimes")
}
