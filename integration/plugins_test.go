// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// Everything that stands on the task runtime loads: CRI, NRI, the restart
// monitor, the sandbox controllers.
func TestPluginsLoad(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(o *daemon.Options) {
		o.Plugins = []string{"cri", "nri", "restart"}
		o.Extra = criConfig
	})
	resp, err := n.Client().IntrospectionService().Plugins(n.ctx)
	require.NoError(t, err)
	loaded := map[string]bool{}
	for _, p := range resp.Plugins {
		uri := p.Type + "." + p.ID
		// A plugin that skips itself has an error too.
		loaded[uri] = p.InitErr == nil
		if p.InitErr != nil {
			require.Contains(t, p.InitErr.Message, "skip plugin", uri)
		}
	}
	for _, uri := range []string{
		"io.containerd.cri.v1.images",
		"io.containerd.cri.v1.runtime",
		"io.containerd.grpc.v1.cri",
		"io.containerd.grpc.v1.sandbox-controllers",
		"io.containerd.grpc.v1.tasks",
		"io.containerd.monitor.container.v1.restart",
		"io.containerd.monitor.task.v1.cgroups",
		"io.containerd.nri.v1.nri",
		"io.containerd.podsandbox.controller.v1.podsandbox",
		"io.containerd.runtime.v2.task",
		"io.containerd.sandbox.controller.v1.shim",
		"io.containerd.service.v1.tasks-service",
		"io.containerd.shim.v1.manager",
	} {
		require.True(t, loaded[uri], "%s is not loaded", uri)
	}
}

// Clients parse the version; that the runtime is ours stands in its build
// metadata.
func TestVersion(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	v, err := n.Client().Version(n.ctx)
	require.NoError(t, err)
	require.Regexp(t, `^2\.\d+\.\d+\+shimyard\.`, v.Version)
	out, err := exec.Command(kit.daemon, "--version").CombinedOutput()
	require.NoError(t, err)
	require.Contains(t, string(out), v.Version)
}

// A config of any version that containerd takes is taken.
func TestConfigVersions(t *testing.T) {
	t.Parallel()
	for _, version := range []int{2, 3, 4} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, func(o *daemon.Options) {
				o.Version = version
				o.ShimEnv = []string{"SHIMYARD_SAMPLE=" + fmt.Sprint(version)}
			})
			j := n.run("task", forever())
			require.Contains(t, readEnviron(t, n.shimPid(testNS, "task")), "SHIMYARD_SAMPLE="+fmt.Sprint(version))
			sockets, err := os.ReadDir(n.SocketDir())
			require.NoError(t, err)
			require.NotEmpty(t, sockets, "socket_dir is used")
			j.finish()
		})
	}
}

// A daemon without a runtime would accept containers and run none.
func TestBadConfigStopsDaemon(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for name, section := range map[string]string{
		"relative socket_dir": "[plugins.'io.containerd.shim.v1.manager']\nsocket_dir = 'relative/dir'\n",
		"long socket_dir":     "[plugins.'io.containerd.shim.v1.manager']\nsocket_dir = '/a/directory/that/leaves/no/room/for/the/name/of/a/socket'\n",
		"bad env":             "[plugins.'io.containerd.shim.v1.manager']\nenv = ['no equals sign']\n",
		"bad platform":        "[plugins.'io.containerd.runtime.v2.task']\nplatforms = ['no/such/platform/at/all']\n",
	} {
		dir := t.TempDir()
		config := fmt.Sprintf("version = 4\nroot = '%[1]s/root'\nstate = '%[1]s/state'\nimports = []\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.nri.v1.nri']\n"+
			"[plugins.'io.containerd.server.v1.grpc']\naddress = '%[1]s/c.sock'\n[plugins.'io.containerd.server.v1.ttrpc']\naddress = '%[1]s/t.sock'\n"+
			"[plugins.'io.containerd.internal.v1.opt']\npath = '%[1]s/opt'\n%[2]s", dir, section)
		path := filepath.Join(dir, "config.toml")
		require.NoError(t, os.WriteFile(path, []byte(config), 0o600))
		out, err := daemon.RunToEnd(kit.daemon, "--config", path)
		require.Error(t, err, "%s: the daemon has not stopped by itself with an error", name)
		key := regexp.MustCompile(`(socket_dir|env|platform)`).FindString(name)
		require.Contains(t, out, key, name)
	}
}
