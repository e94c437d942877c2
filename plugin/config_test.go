// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"context"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager"
	"github.com/shimyard/shimyard/shimclient"
)

// logged is a context whose log is kept.
func logged(t *testing.T) (context.Context, *logtest.Hook) {
	logger, hook := logtest.NewNullLogger()
	return log.WithLogger(t.Context(), logrus.NewEntry(logger)), hook
}

// warnings are what was logged about plugins; the loader's own line about a migration is left out.
func warnings(hook *logtest.Hook) (out []string) {
	for _, e := range hook.AllEntries() {
		if e.Data["plugin"] != nil {
			out = append(out, strings.Join([]string{e.Level.String(), text(e.Data["plugin"]), text(e.Data["key"]),
				e.Message}, "|"))
		}
	}
	return out
}

func text(v any) string { s, _ := v.(string); return s }

// load reads a config file (and others that it may import) with containerd's own loader and migrations.
func load(t *testing.T, ctx context.Context, content string, imports ...string) *srvconfig.Config {
	t.Helper()
	dir := t.TempDir()
	for i, c := range imports {
		require.NoError(t, os.WriteFile(filepath.Join(dir, string(rune('a'+i))+".toml"), []byte(c), 0o600))
	}
	path := filepath.Join(dir, "config.toml")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	c := &srvconfig.Config{Version: version.ConfigVersion, Plugins: map[string]any{}}
	require.NoError(t, srvconfig.LoadConfigWithPlugins(ctx, path, ours, c))
	return c
}

// ours iterates over our registrations, as the daemon does over all.
func ours() iter.Seq[plugin.Registration] {
	return func(yield func(plugin.Registration) bool) {
		for _, r := range registrations() {
			if !yield(*r) {
				return
			}
		}
	}
}

// registration finds ours by full name.
func registration(uri string) *plugin.Registration {
	rs := registrations()
	return rs[slices.IndexFunc(rs, func(r *plugin.Registration) bool { return r.URI() == uri })]
}

// initContext is what an InitFn of ours sees after the daemon has decoded the config.
func initContext(t *testing.T, ctx context.Context, uri, content string, imports ...string) *plugin.InitContext {
	t.Helper()
	ic := plugin.NewContext(ctx, plugin.NewPluginSet(), nil)
	var err error
	ic.Config, err = load(t, ctx, content, imports...).Decode(ctx, uri, registration(uri).Config)
	require.NoError(t, err)
	return ic
}

// shimSection loads a config and applies its manager section.
func shimSection(t *testing.T, ctx context.Context, content string, imports ...string) (out manager.Config, err error) {
	t.Helper()
	var c ShimConfig
	if err := readConfig(initContext(t, ctx, shimURI, content, imports...), shimURI, &c); err != nil {
		return out, err
	}
	return out, c.apply(&out)
}

func TestEveryKeyIsRead(t *testing.T) {
	const sections = `
[plugins.'io.containerd.shim.v1.manager']
  env = ['A=1', 'B=x=y', 'C=']
  socket_dir = '/tmp/sockets/'
  warm_limit = 7
warm_memory_percent = 2
warm_available_percent = 20
warm_pressure_percent = 30
  warm_idle = '90s'
  escalate_after = '10m'
  allowed_runtimes = ['io.containerd.*', '/opt/*/shim']
  binary_check = 'refuse'
  [plugins.'io.containerd.shim.v1.manager'.deadlines]
    State = '500ms'
    Create = '1m'
    Kill = '0s'
    SandboxStatus = '4s'
  [plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.runc.v2']
    path = '/opt//bin/shim'
    start_protocol = 'legacy'
    cleanup = 'always'
    warm = 2
    reuse = 0
    share = 8
    env = ['B=2']
  [plugins.'io.containerd.shim.v1.manager'.runtimes.'/usr/local/bin/containerd-shim-kata-v2']
    cleanup = 'on-failure'
    deadlines = {State = '10s', Pids = '0s', ShutdownSandbox = '5m'}
  [plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.wasmtime.v1']
  [plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.kata.*']
    env = ['K=1']
    reuse = 3
    shim_cgroup = '/kata/shims'
`
	deadlines := shimclient.DefaultDeadlines()
	deadlines["State"] = 500 * time.Millisecond
	deadlines["Create"] = time.Minute
	deadlines["Kill"] = 0
	deadlines["SandboxStatus"] = 4 * time.Second

	for _, v := range []string{"version = 2", "version = 3", "version = 4"} {
		t.Run(v, func(t *testing.T) {
			ctx, hook := logged(t)
			got, err := shimSection(t, ctx, v+sections)
			require.NoError(t, err)
			require.Equal(t, manager.Config{
				Env:       []string{"A=1", "B=x=y", "C="},
				SocketDir: "/tmp/sockets",
				Deadlines: deadlines,
				WarmLimit: 7, WarmMemory: manager.MemoryRule{Share: 2, Available: 20, Pressure: 30},
				WarmIdle: 90 * time.Second, EscalateAfter: 10 * time.Minute,

				AllowedRuntimes: []string{"io.containerd.*", "/opt/*/shim"},
				BinaryCheck:     shimclient.CheckRefuse,
				Runtimes: map[string]manager.RuntimeConfig{
					"io.containerd.runc.v2": {
						Path: "/opt/bin/shim", StartProtocol: shimclient.ProtocolLegacy, Cleanup: manager.CleanupAlways,
						Env: []string{"B=2"}, Pool: &manager.PoolConfig{Warm: 2, Reuse: 0, Share: 8},
					},
					"/usr/local/bin/containerd-shim-kata-v2": {
						StartProtocol: shimclient.ProtocolAuto, Cleanup: manager.CleanupOnFailure,
						Pool: &manager.PoolConfig{Reuse: 100, Share: 1},
						Deadlines: shimclient.Deadlines{"State": 10 * time.Second, "Pids": 0,
							"ShutdownSandbox": 5 * time.Minute},
					},
					"io.containerd.wasmtime.v1": {
						StartProtocol: shimclient.ProtocolAuto, Cleanup: manager.CleanupAuto,
						Pool: &manager.PoolConfig{Reuse: 100, Share: 1},
					},
					"io.containerd.kata.*": {
						StartProtocol: shimclient.ProtocolAuto, Cleanup: manager.CleanupAuto, Env: []string{"K=1"},
						ShimCgroup: "/kata/shims",
						Pool:       &manager.PoolConfig{Warm: -1, Reuse: 3, Share: -1},
					},
				},
			}, got)
			require.Empty(t, warnings(hook))
		})
	}
}

func TestNoSectionMeansTheDefaults(t *testing.T) {
	ctx, hook := logged(t)
	got, err := shimSection(t, ctx, "version = 4")
	require.NoError(t, err)
	require.Equal(t, shimclient.DefaultDeadlines(), got.Deadlines)
	require.Empty(t, got.Env)
	require.Empty(t, got.Runtimes)
	require.Equal(t, defaultSocketDir(), got.SocketDir)
	require.Zero(t, got.EscalateAfter, "no silent shim is ended")
	require.Empty(t, got.AllowedRuntimes, "all are allowed")
	require.Equal(t, shimclient.CheckWarn, got.BinaryCheck)
	require.Empty(t, warnings(hook))
}

func TestDefaultsCanBeWrittenAndReadBack(t *testing.T) {
	b, err := toml.Marshal(map[string]any{"plugins": map[string]any{
		shimURI: registration(shimURI).Config,
		taskURI: registration(taskURI).Config,
	}})
	require.NoError(t, err)
	for _, key := range []string{"env = []", "socket_dir = ''", "Kill = '30s'", "platforms = ['"} {
		require.True(t, bytes.Contains(b, []byte(key)), "%s in\n%s", key, b)
	}
	ctx, hook := logged(t)
	got, err := shimSection(t, ctx, "version = 4\n"+string(b))
	require.NoError(t, err)
	require.Equal(t, shimclient.DefaultDeadlines(), got.Deadlines)
	require.Empty(t, warnings(hook))
}

// What the README shows as the config is one, and its deadlines are the defaults, as it says.
func TestReadmeConfig(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.Len(t, blocks, 1)
	ctx, hook := logged(t)
	got, err := shimSection(t, ctx, blocks[0][1])
	require.NoError(t, err)
	require.Equal(t, shimclient.DefaultDeadlines(), got.Deadlines)
	require.Len(t, got.Runtimes, 1)
	var tasks TaskConfig
	require.NoError(t, readConfig(initContext(t, ctx, taskURI, blocks[0][1]), taskURI, &tasks))
	_, err = tasks.platforms()
	require.NoError(t, err)
	require.Empty(t, warnings(hook))
}

func TestKeysInAnotherCaseCountAsStockLetsThem(t *testing.T) {
	ctx, hook := logged(t)
	got, err := shimSection(t, ctx,
		"version = 4\n[plugins.'io.containerd.shim.v1.manager']\nEnv = ['A=1']\nSocket_Dir = '/s'\n")
	require.NoError(t, err)
	require.Equal(t, []string{"A=1"}, got.Env)
	require.Equal(t, "/s", got.SocketDir)
	require.Empty(t, warnings(hook))
}

func TestBadValues(t *testing.T) {
	for name, c := range map[string]struct{ section, want string }{
		"env without name":    {`env = ['=x']`, `key env: entry 0, "=x", is not of the form NAME=value`},
		"env without =":       {`env = ['A=1', 'B']`, `key env: entry 1, "B", is not of the form NAME=value`},
		"env with NUL":        {`env = ["A=\u0000"]`, `has a NUL byte in it`},
		"env not a list":      {`env = 'A=1'`, `key env: `},
		"env of numbers":      {`env = [1]`, `key env`},
		"socket_dir relative": {`socket_dir = 'run/s'`, `key socket_dir: "run/s" is not an absolute path`},
		"socket_dir too long": {`socket_dir = '/` + strings.Repeat("d", maxSocketDirLen) + `'`,
			`in it only fits into an address if it has at most`},
		"socket_dir with NUL": {`socket_dir = "/a\u0000"`, `has a NUL byte in it`},
		"unknown method": {`deadlines = {Stats = '1s', Kil = '1s'}`,
			`key deadlines.Kil: neither the Task nor the Sandbox API has such a method, did you mean Kill?`},
		"wildly unknown method": {`deadlines = {Frobnicate = '1s'}`,
			`known are Checkpoint, CloseIO, Connect, Create, CreateSandbox, Delete, Exec, Kill, Pause, Pids, PingSandbox, Platform, ` +
				`ResizePty, Resume, SandboxMetrics, SandboxStatus, Shutdown, ShutdownSandbox, Start, StartSandbox, State, Stats, StopSandbox, Update, ` +
				`UpdateSandbox, Wait, WaitSandbox`},
		"no deadline for Connect": {`deadlines = {Connect = '0s'}`,
			`key deadlines.Connect: "0s" would bound nothing where it is called without a caller`},
		"none for State":  {`deadlines = {State = '0s'}`, `key deadlines.State: "0s" would bound nothing`},
		"none for Delete": {`deadlines = {Delete = '0m'}`, `key deadlines.Delete: "0m" would bound nothing`},
		"none for SandboxStatus": {`deadlines = {SandboxStatus = '0s'}`,
			`key deadlines.SandboxStatus: "0s" would bound nothing`},
		"none for its Shutdown": {`deadlines = {ShutdownSandbox = '0s'}`,
			`key deadlines.ShutdownSandbox: "0s" would bound nothing`},
		"deadline for a pod Wait": {`deadlines = {WaitSandbox = '1h'}`,
			`key deadlines.WaitSandbox: a Wait lasts as long as its container`},
		"runtime's deadline": {`runtimes = {'io.containerd.kata.v2' = {deadlines = {State = '0s'}}}`,
			`key runtimes."io.containerd.kata.v2": key deadlines.State: "0s"`},
		"deadline for Wait": {`deadlines = {Wait = '1h'}`,
			`key deadlines.Wait: a Wait lasts as long as its container`},
		"negative deadline":     {`deadlines = {State = '-2s'}`, `key deadlines.State: "-2s" is negative`},
		"deadline without unit": {`deadlines = {State = '2'}`, `key deadlines.State: "2" is not a duration`},
		"deadline a number":     {`deadlines = {State = 2}`, `key deadlines.State: `},
		"start protocol": {`runtimes = {'io.containerd.runc.v2' = {start_protocol = 'ttrpc'}}`,
			`key runtimes."io.containerd.runc.v2": start_protocol "ttrpc": use "auto", "bootstrap" or "legacy"`},
		"cleanup policy": {`runtimes = {'io.containerd.runc.v2' = {cleanup = 'never'}}`,
			`key runtimes."io.containerd.runc.v2": cleanup "never": use "auto", "always" or "on-failure"`},
		"runtime without dots":  {`runtimes = {runc = {}}`, `key runtimes."runc": neither the name of a runtime`},
		"runtime relative path": {`runtimes = {'bin/io.containerd.runc.v2' = {}}`, `nor an absolute path`},
		"runtime empty part":    {`runtimes = {'io..v2' = {}}`, `neither the name of a runtime`},
		"runtime twice": {`runtimes = {'/bin//shim' = {}, '/bin/shim' = {}}`,
			`/bin/shim has a section already`},
		"path relative": {`runtimes = {'io.containerd.runc.v2' = {path = 'shim'}}`,
			`path "shim": not an absolute path`},
		"path of a path": {`runtimes = {'/bin/shim' = {path = '/bin/other'}}`,
			`the section is for one binary already`},
		"runtimes not a table": {`runtimes = 1`, `key runtimes: `},
		"a runtime not a table": {`runtimes = {'io.containerd.runc.v2' = true}`,
			`key runtimes.io.containerd.runc.v2: `},
		"escalation":          {`escalate_after = '10'`, `key escalate_after: "10" is not a duration`},
		"negative escalation": {`escalate_after = '-1s'`, `key escalate_after: "-1s" is not a duration`},
		"a family's pattern": {`runtimes = {'io.containerd.kata.[' = {}}`,
			`key runtimes."io.containerd.kata.[": not a pattern: syntax error`},
		"path of a family": {`runtimes = {'io.containerd.kata.*' = {path = '/bin/shim'}}`,
			`path "/bin/shim": the section is for many runtimes`},
		"family that shares": {`runtimes = {'io.containerd.*' = {share = 2}}`,
			`key runtimes."io.containerd.*": share 2 needs warm shims`},
		"cgroup relative": {`runtimes = {'io.containerd.runc.v2' = {shim_cgroup = 'shims'}}`,
			`shim_cgroup "shims": not a path below the root`},
		"cgroup upwards": {`runtimes = {'io.containerd.runc.v2' = {shim_cgroup = '/a/../b'}}`,
			`shim_cgroup "/a/../b": not a path below`},
		"root cgroup": {`runtimes = {'io.containerd.runc.v2' = {shim_cgroup = '/'}}`,
			`shim_cgroup "/": not a path below`},
		"env of a runtime": {`runtimes = {'io.containerd.runc.v2' = {env = ['B']}}`,
			`key runtimes."io.containerd.runc.v2": key env: entry 0, "B", is not of the form NAME=value`},
		"a pattern": {`allowed_runtimes = ['io.[containerd']`,
			`key allowed_runtimes: pattern "io.[containerd": syntax error in pattern`},
		"binary check": {`binary_check = 'maybe'`,
			`key binary_check: binary check "maybe": use "warn", "off" or "refuse"`},
		"cleanup of wrong type": {`runtimes = {'io.containerd.runc.v2' = {cleanup = true}}`,
			`key runtimes.io.containerd.runc.v2.cleanup: `},
		"socket_dir not a string": {`socket_dir = 1`, `key socket_dir: `},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, _ := logged(t)
			_, err := shimSection(t, ctx, "version = 4\n[plugins.'io.containerd.shim.v1.manager']\n"+c.section)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestLongestSocketDir(t *testing.T) {
	dir := "/" + strings.Repeat("d", maxSocketDirLen-1)
	ctx, _ := logged(t)
	got, err := shimSection(t, ctx, "version = 4\n[plugins.'io.containerd.shim.v1.manager']\nsocket_dir = '"+dir+"/'\n")
	require.NoError(t, err)
	require.Equal(t, dir, got.SocketDir)
}

func TestUnknownKeysAreReportedWithTheNearest(t *testing.T) {
	const shim, task = "warning|io.containerd.shim.v1.manager|", "warning|io.containerd.runtime.v2.task|"
	for name, c := range map[string]struct{ uri, section, want string }{
		"misspelled": {shimURI, `socket_dri = '/s'`,
			shim + "socket_dri|ignoring an unknown key in the config: did you mean socket_dir?"},
		"other separator": {shimURI, `socket-dir = '/s'`,
			shim + "socket-dir|ignoring an unknown key in the config: did you mean socket_dir?"},
		"a table": {shimURI, `runtime = {a = 1}`,
			shim + "runtime|ignoring an unknown key in the config: did you mean runtimes?"},
		"nothing like it": {shimURI, `frobnicate = 1`,
			shim + "frobnicate|ignoring an unknown key in the config: known here are env, socket_dir, deadlines, escalate_after, warm_limit, warm_idle, warm_memory_percent, warm_available_percent, warm_pressure_percent, allowed_runtimes, binary_check, runtimes"},
		"of a runtime": {shimURI, `runtimes = {'io.containerd.runc.v2' = {start_protcol = 'legacy'}}`,
			shim + "runtimes.io.containerd.runc.v2.start_protcol|ignoring an unknown key in the config: did you mean start_protocol?"},
		"in the wrong section": {taskURI, `socket_dir = '/s'`,
			task + "socket_dir|ignoring an unknown key in the config: it belongs in [plugins.'io.containerd.shim.v1.manager']"},
		"in the other wrong section": {shimURI, `platforms = ['linux/amd64']`,
			shim + "platforms|ignoring an unknown key in the config: it belongs in [plugins.'io.containerd.runtime.v2.task']"},
		"sched_core": {taskURI, `sched_core = true`,
			task + "sched_core|ignoring an unknown key in the config: sched_core has been replaced: to enable core scheduling add " +
				"\"SCHED_CORE=1\" to env in [plugins.'io.containerd.shim.v1.manager'], then remove the key"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, hook := logged(t)
			ic := initContext(t, ctx, c.uri, "version = 4\n[plugins.'"+c.uri+"']\n"+c.section)
			var shim ShimConfig
			var task TaskConfig
			if c.uri == shimURI {
				require.NoError(t, readConfig(ic, shimURI, &shim))
				require.Empty(t, shim.SocketDir)
			} else {
				require.NoError(t, readConfig(ic, taskURI, &task))
				require.Equal(t, defaultPlatforms(), task.Platforms)
			}
			require.Equal(t, []string{c.want}, warnings(hook))
		})
	}
}

func TestKnownKeysCountBesideUnknownOnes(t *testing.T) {
	for _, v := range []string{"version = 2", "version = 3", "version = 4"} {
		ctx, hook := logged(t)
		got, err := shimSection(t, ctx,
			v+"\n[plugins.'io.containerd.shim.v1.manager']\nenv = ['A=1']\nenvs = ['B=1']\n")
		require.NoError(t, err)
		require.Equal(t, []string{"A=1"}, got.Env)
		require.Len(t, warnings(hook), 1, v)
	}
}

func TestTaskPlatforms(t *testing.T) {
	for section, want := range map[string]string{
		"platforms = ['linux/arm64', 'linux/arm/v7']": "",
		"platforms = ['Linux///x']":                   "key platforms: ",
		"platforms = 'linux/arm64'":                   "key platforms: ",
	} {
		ctx, _ := logged(t)
		var c TaskConfig
		err := readConfig(initContext(t, ctx, taskURI,
			"version = 4\n[plugins.'io.containerd.runtime.v2.task']\n"+section), taskURI, &c)
		if err == nil {
			_, err = c.platforms()
		}
		if want == "" {
			require.NoError(t, err)
			require.Equal(t, []string{"linux/arm64", "linux/arm/v7"}, c.Platforms)
		} else {
			require.ErrorContains(t, err, want, section)
		}
	}
}

func TestNearest(t *testing.T) {
	candidates := []string{"env", "socket_dir", "start_protocol", "path"}
	for word, want := range map[string]string{
		"env": "env", "evn": "", "enf": "env", "ENV": "env", "socketdir": "socket_dir", "socket_directory": "",
		"sockt_dri": "socket_dir",
		"paths":     "path", "pathology": "", "startprotocoll": "start_protocol", "": "", "é": "",
	} {
		require.Equal(t, want, nearest(word, candidates), word)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		require.Equal(t, c.want, distance(c.a, c.b), "%s %s", c.a, c.b)
		require.Equal(t, c.want, distance(c.b, c.a), "%s %s", c.b, c.a)
	}
}
