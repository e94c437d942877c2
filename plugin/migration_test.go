// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMigrationMerges(t *testing.T) {
	const (
		task = "\n[plugins.'io.containerd.runtime.v2.task']\nplatforms = ['linux/arm64']\n"
		shim = "\n[plugins.'io.containerd.shim.v1.manager']\n"
	)
	for name, c := range map[string]struct {
		config string
		env    []string
		warned bool
	}{
		"neither":               {"", nil, false},
		"only the task section": {task + "sched_core = true", []string{"SCHED_CORE=1"}, false},
		"both": {task + "sched_core = true" + shim + "env = ['A=1']\nsocket_dir = '/s'",
			[]string{"A=1", "SCHED_CORE=1"}, false},
		"both, other order": {shim + "env = ['A=1']\nsocket_dir = '/s'" + task + "sched_core = true",
			[]string{"A=1", "SCHED_CORE=1"}, false},
		"both, off": {task + "sched_core = false" + shim + "env = ['A=1']\nsocket_dir = '/s'",
			[]string{"A=1"}, false},
		"both, without sched_core": {task + shim + "env = ['A=1']\nsocket_dir = '/s'", []string{"A=1"}, false},
		"in the manager section": {task + shim + "env = ['A=1']\nsched_core = true",
			[]string{"A=1", "SCHED_CORE=1"}, false},
		"in both sections": {task + "sched_core = true" + shim + "sched_core = true",
			[]string{"SCHED_CORE=1"}, false},
		"on in one, off in the other": {task + "sched_core = true" + shim + "sched_core = false",
			[]string{"SCHED_CORE=1"}, false},
		"already in env": {task + "sched_core = true" + shim + "env = ['SCHED_CORE=1', 'A=1']",
			[]string{"SCHED_CORE=1", "A=1"}, false},
		"env says something else": {task + "sched_core = true" + shim + "env = ['SCHED_CORE=yes']",
			[]string{"SCHED_CORE=yes"}, false},
		"env disables it": {task + "sched_core = true" + shim + "env = ['SCHED_CORE=']",
			[]string{"SCHED_CORE="}, true},
		"not a boolean":                {task + "sched_core = 'yes'" + shim + "env = ['A=1']", []string{"A=1"}, true},
		"not a boolean in the manager": {task + shim + "env = ['A=1']\nsched_core = 1", []string{"A=1"}, true},
	} {
		for _, v := range []string{"version = 2", "version = 3"} {
			t.Run(name+", "+v, func(t *testing.T) {
				ctx, hook := logged(t)
				got, err := shimSection(t, ctx, v+c.config)
				require.NoError(t, err)
				require.ElementsMatch(t, c.env, got.Env)
				require.Len(t, warnings(hook), map[bool]int{false: 0, true: 1}[c.warned])

				ic := initContext(t, ctx, taskURI, v+task)
				var tc TaskConfig
				require.NoError(t, readConfig(ic, taskURI, &tc))
				require.Equal(t, []string{"linux/arm64"}, tc.Platforms)
			})
		}
	}
}

func TestMigrationKeepsSocketDirAndOurKeys(t *testing.T) {
	ctx, _ := logged(t)
	got, err := shimSection(t, ctx, `version = 3
[plugins.'io.containerd.runtime.v2.task']
sched_core = true
[plugins.'io.containerd.shim.v1.manager']
socket_dir = '/s'
[plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.runc.v2']
cleanup = 'always'
`)
	require.NoError(t, err)
	require.Equal(t, "/s", got.SocketDir)
	require.Equal(t, []string{"SCHED_CORE=1"}, got.Env)
	require.Contains(t, got.Runtimes, "io.containerd.runc.v2")
}

// An imported file is migrated by itself and merged afterwards.
func TestMigrationOfImportedFiles(t *testing.T) {
	const (
		main     = "imports = ['a.toml']\nversion = "
		imported = "version = 3\n[plugins.'io.containerd.runtime.v2.task']\nsched_core = true\n"
	)
	for _, v := range []string{"2", "3", "4"} {
		ctx, _ := logged(t)
		got, err := shimSection(t, ctx, main+v+"\n[plugins.'io.containerd.shim.v1.manager']\nsocket_dir = '/s'\n",
			imported)
		require.NoError(t, err)
		require.Equal(t, []string{"SCHED_CORE=1"}, got.Env)
		require.Equal(t, "/s", got.SocketDir)
	}
}

func TestMigrationLeavesOddSectionsToTheCheck(t *testing.T) {
	ctx, _ := logged(t)
	for _, sections := range []map[string]any{
		nil,
		{taskURI: 1},
		{taskURI: map[string]any{schedCoreKey: true}, shimURI: "x"},
		{taskURI: map[string]any{schedCoreKey: true}, shimURI: map[string]any{"env": "A=1"}},
	} {
		for v := range 5 {
			require.NoError(t, migrate(ctx, v, sections))
		}
	}
	_, err := shimSection(t, ctx, "version = 2\n[plugins.'io.containerd.runtime.v2.task']\nsched_core = true\n"+
		"[plugins.'io.containerd.shim.v1.manager']\nenv = 'A=1'\n")
	require.ErrorContains(t, err, "key env")
}

func TestVersion4IsNotMigrated(t *testing.T) {
	ctx, hook := logged(t)
	got, err := shimSection(t, ctx, "version = 4\n[plugins.'io.containerd.shim.v1.manager']\nsched_core = true\n")
	require.NoError(t, err)
	require.Empty(t, got.Env)
	require.Len(t, warnings(hook), 1)
}
