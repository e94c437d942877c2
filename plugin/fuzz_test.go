// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager"
)

// FuzzSection: a section of the config is taken or refused with an error, whatever its keys hold, and what is taken is
// within its bounds.
func FuzzSection(f *testing.F) {
	for _, seed := range []string{
		`env = ['A=1']`, `deadlines = {State = '5s'}`,
		`runtimes = {'io.containerd.kata.*' = {env = ['A=1'], warm = 0, shim_cgroup = '/a'}}`,
		`runtimes = {'/opt/[' = {}}`, `allowed_runtimes = ['io.[']`, `socket_dir = 1`, `warm_limit = 99999999999`,
		`Env = ['=']`,
		`runtimes = {'io.containerd.runc.v2' = {path = '/a/../b', deadlines = {Kil = '1s'}}}`, `escalate_after = '-1s'`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := *newSection(defaultShimConfig())
		if toml.Unmarshal([]byte(text), &s) != nil {
			return // the daemon does not start
		}
		var c ShimConfig
		unknown, err := s.decode(&c, sectionKeys[shimURI])
		if err != nil {
			return
		}
		for _, path := range unknown {
			require.NotEmpty(t, hint(shimURI, path))
		}
		var got manager.Config
		if c.apply(&got) != nil {
			return
		}
		require.GreaterOrEqual(t, got.WarmLimit, 0)
		require.Positive(t, got.WarmIdle)
		require.NoError(t, got.Deadlines.Check())
		for name, r := range got.Runtimes {
			require.NotEmpty(t, name)
			require.GreaterOrEqual(t, r.Pool.Warm, -1)
			require.NoError(t, checkEnv(r.Env))
		}
	})
}
