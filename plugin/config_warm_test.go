// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager"
)

const managerSection = "version = 4\n[plugins.'io.containerd.shim.v1.manager']\n"

func TestWarmDefaults(t *testing.T) {
	ctx, hook := logged(t)
	got, err := shimSection(t, ctx,
		managerSection+`runtimes = {'io.containerd.runc.v2' = {cleanup = 'auto'}, 'io.containerd.kata.v2' = {}, '/bin/shim' = {warm = 1}}`)
	require.NoError(t, err)
	require.Equal(t, 32, got.WarmLimit)
	require.Equal(t, time.Minute, got.WarmIdle)
	require.Equal(t, manager.MemoryRule{Share: 1, Available: 10, Pressure: 10}, got.WarmMemory)
	require.Equal(t, &manager.PoolConfig{Warm: 4, Reuse: 100, Share: 1}, got.Runtimes["io.containerd.runc.v2"].Pool)
	require.Equal(t, &manager.PoolConfig{Warm: 0, Reuse: 100, Share: 1}, got.Runtimes["io.containerd.kata.v2"].Pool)
	require.Equal(t, &manager.PoolConfig{Warm: 1, Reuse: 100, Share: 1}, got.Runtimes["/bin/shim"].Pool)
	require.Equal(t, manager.PoolConfig{Warm: 4, Reuse: 100, Share: 1}, manager.DefaultPool("io.containerd.runc.v2"),
		"what counts without a section")
	require.Equal(t, manager.PoolConfig{Warm: 0, Reuse: 100, Share: 1}, manager.DefaultPool("io.containerd.runc.v1"))
	require.Empty(t, warnings(hook))
}

func TestWarmValues(t *testing.T) {
	for name, c := range map[string]struct{ section, want string }{
		"none":              {`warm_limit = 0`, ``},
		"none of a runtime": {`runtimes = {'io.containerd.runc.v2' = {warm = 0}}`, ``},
		"never again":       {`runtimes = {'io.containerd.runc.v2' = {reuse = 0}}`, ``},
		"shared":            {`runtimes = {'io.containerd.runc.v2' = {share = 8}}`, ``},
		"shared by another": {`runtimes = {'io.containerd.kata.v2' = {share = 8, warm = 1}}`, ``},
		"without core schedule": {"env = ['SCHED_CORE=']\n" + `runtimes = {'io.containerd.runc.v2' = {share = 8}}`,
			``},
		"alone on its core": {"env = ['SCHED_CORE=1']\n" + `runtimes = {'io.containerd.runc.v2' = {share = 1}}`,
			``},
		"negative limit": {`warm_limit = -1`, `key warm_limit: -1 is negative`},
		"any memory": {"warm_memory_percent = 0\nwarm_available_percent = 0\nwarm_pressure_percent = 0",
			``},
		"all memory":            {"warm_memory_percent = 100", ``},
		"negative memory":       {"warm_memory_percent = -1", `key warm_memory_percent: -1: want 0`},
		"too much available":    {"warm_available_percent = 101", `key warm_available_percent: 101: want 0`},
		"pressure of text":      {"warm_pressure_percent = '10%'", `warm_pressure_percent`},
		"limit of another type": {`warm_limit = 'many'`, `key warm_limit`},
		"idle without a unit":   {`warm_idle = '60'`, `key warm_idle: "60" is not a duration`},
		"idle of none":          {`warm_idle = '0s'`, `key warm_idle: "0s" is not a duration`},
		"idle negative":         {`warm_idle = '-1s'`, `key warm_idle: `},
		"idle empty":            {`warm_idle = ''`, `key warm_idle: `},
		"idle a number":         {`warm_idle = 60`, `key warm_idle`},
		"negative warm": {`runtimes = {'io.containerd.runc.v2' = {warm = -1}}`,
			`key runtimes."io.containerd.runc.v2": warm -1: want 0 or more`},
		"negative reuse": {`runtimes = {'io.containerd.runc.v2' = {reuse = -1}}`,
			`key runtimes."io.containerd.runc.v2": reuse -1: want 0 or more`},
		"shared by none": {`runtimes = {'io.containerd.runc.v2' = {share = 0}}`,
			`key runtimes."io.containerd.runc.v2": share 0: want 1 or more`},
		"share of another type": {`runtimes = {'io.containerd.runc.v2' = {share = '2'}}`, `share`},
		"shared and not warm": {`runtimes = {'io.containerd.runc.v2' = {share = 2, warm = 0}}`,
			`key runtimes."io.containerd.runc.v2": share 2 needs warm shims`},
		"shared and not default": {`runtimes = {'io.containerd.kata.v2' = {share = 2}}`,
			`key runtimes."io.containerd.kata.v2": share 2 needs warm shims`},
		"shared cores": {"env = ['A=1', 'SCHED_CORE=1']\n" + `runtimes = {'io.containerd.runc.v2' = {share = 2}}`,
			`key runtimes."io.containerd.runc.v2": share 2 would let containers share a core that SCHED_CORE is to keep apart`},
		"shared cores by the old key": {"sched_core = true\n" + `runtimes = {'io.containerd.runc.v2' = {share = 2}}`,
			`SCHED_CORE`},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, _ := logged(t)
			section := managerSection
			if name == "shared cores by the old key" {
				section = "version = 3\n[plugins.'io.containerd.shim.v1.manager']\n"
			}
			_, err := shimSection(t, ctx, section+c.section)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

// The daemon's own environment is the shims', too, unless the section says something else.
func TestSharedCoresByTheDaemonsEnvironment(t *testing.T) {
	const shared = "runtimes = {'io.containerd.runc.v2' = {share = 2}}"
	for name, c := range map[string]struct {
		env, section string
		refused      bool
	}{
		"set":                       {"1", shared, true},
		"set to nothing":            {"", shared, false},
		"set, the section's is not": {"1", "env = ['SCHED_CORE=']\n" + shared, false},
		"set, the section's too":    {"1", "env = ['SCHED_CORE=yes']\n" + shared, true},
		"set, nothing is shared":    {"1", "", false},
		"set to nothing by the runtime": {
			"1", "runtimes = {'io.containerd.runc.v2' = {share = 2, env = ['SCHED_CORE=']}}", false,
		},
		"set by the runtime": {"", "runtimes = {'io.containerd.runc.v2' = {share = 2, env = ['SCHED_CORE=1']}}", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SCHED_CORE", c.env)
			ctx, _ := logged(t)
			_, err := shimSection(t, ctx, managerSection+c.section)
			if c.refused {
				require.ErrorContains(t, err, "share a core that SCHED_CORE is to keep apart")
				return
			}
			require.NoError(t, err)
		})
	}
}
