// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/cmd/containerd/command"
	"github.com/containerd/plugin/registry"
	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/plugin"
)

// runAs makes the test binary run as a daemon: "ours" is main itself, "stock" what containerd's own main does.
const runAs = "SHIMYARD_TEST_RUN_AS"

func TestMain(m *testing.M) {
	switch os.Getenv(runAs) {
	case "":
		os.Exit(m.Run())
	case "ours":
		main()
	case "stock":
		if err := command.App().Run(context.Background(), os.Args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// run runs a containerd command and returns what it wrote.
func run(t *testing.T, as string, args ...string) (stdout, stderr string, err error) {
	// The deadline only keeps a daemon that should have stopped from running for ever.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), runAs+"="+as)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	require.NoError(t, ctx.Err(), "still running: %s", errs.String())
	return out.String(), errs.String(), err
}

// config runs a `config` command and decodes what it prints.
func config(t *testing.T, as string, args ...string) (out struct {
	Version  int
	Plugins  map[string]map[string]any
	Timeouts map[string]string
}) {
	stdout, stderr, err := run(t, as, args...)
	require.NoError(t, err, stderr)
	require.NoError(t, toml.Unmarshal([]byte(stdout), &out))
	return out
}

const (
	shimURI    = "io.containerd.shim.v1.manager"
	taskURI    = "io.containerd.runtime.v2.task"
	sandboxURI = "io.containerd.sandbox.controller.v1.shim"
)

func TestVersion(t *testing.T) {
	stdout, stderr, err := run(t, "ours", "--version")
	require.NoError(t, err, stderr)
	fields := strings.Fields(stdout)
	require.Equal(t, []string{"containerd", "github.com/containerd/containerd/v2"}, fields[:2])
	require.Regexp(t, regexp.MustCompile(`^2\.\d+\.\d+(-[0-9A-Za-z.-]+)?\+shimyard(\.[0-9A-Za-z-]+)+$`), fields[2])
}

// The graph is the one of containerd's own daemon, with three of its plugins ours.
func TestGraph(t *testing.T) {
	stock := registry.Graph(nil)
	plugin.Replace()
	replaced := registry.Graph(nil)

	require.Len(t, replaced, len(stock))
	seen := make(map[string]bool)
	for i, r := range replaced {
		uri := r.URI()
		seen[uri] = true
		require.Equal(t, stock[i].URI(), uri)
		require.Equal(t, stock[i].Requires, r.Requires, uri)
		initFn := runtime.FuncForPC(reflect.ValueOf(r.InitFn).Pointer()).Name()
		switch uri {
		case shimURI, taskURI, sandboxURI:
			require.Contains(t, initFn, "shimyard/plugin.", uri)
		default:
			require.NotContains(t, initFn, "shimyard", uri)
			require.True(t, stock[i].Config == r.Config, uri)
		}
	}
	for _, uri := range []string{
		shimURI, taskURI, sandboxURI, "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime",
		"io.containerd.nri.v1.nri",
		"io.containerd.monitor.container.v1.restart",
	} {
		require.True(t, seen[uri], "%s is not in the daemon", uri)
	}
}

// A config that stock containerd writes means the same to us, and has all our sections and keys besides.
func TestConfigDefault(t *testing.T) {
	stock, ours := config(t, "stock", "config", "default"), config(t, "ours", "config", "default")
	require.Equal(t, stock.Version, ours.Version)
	require.Equal(t, stock.Timeouts, ours.Timeouts)
	for uri, section := range stock.Plugins {
		if uri == shimURI || uri == taskURI {
			for key, value := range section {
				require.Equal(t, value, ours.Plugins[uri][key], "%s %s", uri, key)
			}
			continue
		}
		require.Equal(t, section, ours.Plugins[uri], uri)
	}
	require.Len(t, ours.Plugins, len(stock.Plugins))
	require.Contains(t, ours.Plugins[shimURI], "deadlines")
	require.Contains(t, ours.Plugins[shimURI], "runtimes")
}

const old = `version = 2
[plugins.'io.containerd.runtime.v2.task']
sched_core = true
[plugins.'io.containerd.shim.v1.manager']
env = ['A=1']
socket_dir = '/run/somewhere'
[plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.runc.v2']
cleanup = 'always'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
`

func TestConfigMigrateAndDump(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	require.NoError(t, os.WriteFile(path, []byte(old), 0o600))
	for _, command := range []string{"migrate", "dump"} {
		c := config(t, "ours", "--config", path, "config", command)
		require.Equal(t, 4, c.Version)
		require.Equal(t, []any{"A=1", "SCHED_CORE=1"}, c.Plugins[shimURI]["env"])
		require.Equal(t, "/run/somewhere", c.Plugins[shimURI]["socket_dir"])
		require.Equal(t, map[string]any{"io.containerd.runc.v2": map[string]any{"cleanup": "always"}},
			c.Plugins[shimURI]["runtimes"])
		require.NotContains(t, c.Plugins[taskURI], "sched_core")
	}

	// What we migrated is good for stock containerd, should somebody go back.
	stdout, stderr, err := run(t, "ours", "--config", path, "config", "migrate")
	require.NoError(t, err, stderr)
	require.NoError(t, os.WriteFile(path, []byte(stdout), 0o600))
	c := config(t, "stock", "--config", path, "config", "dump")
	require.Equal(t, []any{"A=1", "SCHED_CORE=1"}, c.Plugins[shimURI]["env"])
	require.Equal(t, "/run/somewhere", c.Plugins[shimURI]["socket_dir"])
}

// What the daemon makes of a file is what `config dump` shows: each key with the user's value, or else the default.
func TestConfigDump(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	require.NoError(t, os.WriteFile(path, []byte(`version = 4
[plugins.'io.containerd.shim.v1.manager']
binary_check = 'refuse'
deadlines = {State = '5s'}
[plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.kata.*']
env = ['A=1']
shim_cgroup = '/shims'
warm = 0
deadlines = {Pids = '9s'}
`), 0o600))
	dumped := config(t, "ours", "--config", path, "config", "dump").Plugins[shimURI]
	byDefault := config(t, "ours", "config", "default").Plugins[shimURI]
	for f := range reflect.TypeFor[plugin.ShimConfig]().Fields() {
		key := f.Tag.Get("toml")
		require.Contains(t, byDefault, key)
		switch key {
		case "binary_check":
			require.Equal(t, "refuse", dumped[key])
		case "deadlines":
			require.Equal(t, "5s", dumped[key].(map[string]any)["State"])
			require.Equal(t, "30s", dumped[key].(map[string]any)["Kill"])
		case "runtimes":
			require.Equal(t, map[string]any{"io.containerd.kata.*": map[string]any{
				"env": []any{"A=1"}, "shim_cgroup": "/shims", "warm": int64(0),
				"deadlines": map[string]any{"Pids": "9s"},
			}}, dumped[key])
		default:
			require.Equal(t, byDefault[key], dumped[key], key)
		}
	}
}

// A daemon with a bad value must not come up without a runtime. It stops before it has touched any socket.
func TestBadConfigStopsTheDaemon(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("starts a containerd daemon, which needs root")
	}
	for section, want := range map[string]string{
		"[plugins.'io.containerd.shim.v1.manager']\nsocket_dir = 'relative'":                 `key socket_dir: "relative" is not an absolute path`,
		"[plugins.'io.containerd.shim.v1.manager'.deadlines]\nStat = '1s'":                   "key deadlines.Stat: neither the Task nor the Sandbox API has such a method",
		"[plugins.'io.containerd.runtime.v2.task']\nplatforms = ['no/such/platform/at/all']": "key platforms: ",
	} {
		dir, err := os.MkdirTemp("", "sy")
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		path := filepath.Join(dir, "config.toml")
		require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `version = 4
root = '%[1]s/root'
state = '%[1]s/state'
temp = '%[1]s/tmp'
disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime']
%[2]s
[plugins.'io.containerd.internal.v1.opt']
path = '%[1]s/opt'
[plugins.'io.containerd.nri.v1.nri']
disable = true
`, dir, section), 0o600))

		_, stderr, err := run(t, "ours", "--config", path, "--address", filepath.Join(dir, "c.sock"))
		require.Error(t, err)
		require.Contains(t, stderr, "plugin failed after registering readiness")
		require.Contains(t, stderr, want)
		require.NoFileExists(t, filepath.Join(dir, "c.sock"))
	}
}
