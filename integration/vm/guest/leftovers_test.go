// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What every check ends with must be able to fail: each kind of leftover is found, and named.
func TestEachKindOfLeftoverIsFound(t *testing.T) {
	const tasks = "run/containerd/io.containerd.runtime.v2.task"
	for _, c := range []struct{ path, data, says string }{
		{tasks + "/vm/c/config.json", "", "bundle: "},
		{"var/lib/containerd/io.containerd.runtime.v2.task/vm/c/x", "", "work dir: "},
		{"run/containerd/s/0123", "", "socket: "},
		{"run/containerd/fifo/1/c-stdout", "", "fifo: "},
		{"run/containerd/runc/vm/c/state.json", "", "state of runc: "},
		{tasks + "/._abc/config.json", "", "directory of a warm shim: "},
		{"proc/mounts", "overlay /run/containerd/x overlay rw 0 0\n", "mount: "},
		{"proc/mounts", "overlay /var/lib/containerd/x overlay rw 0 0\n", "mount: "},
		{"sys/fs/cgroup/vm/c/cgroup.procs", "", "cgroup: "},
		{"sys/fs/cgroup/system.slice/vm-c.scope/cgroup.procs", "", "cgroup: "},
		{"proc/7/comm", "containerd-shim\n", "process: 7 "},
	} {
		t.Run(c.path, func(t *testing.T) {
			top := emptyNode(t)
			put(t, top, c.path, c.data)
			require.Contains(t, lookAt(t, top), c.says)
		})
	}
}

func TestANodeWithoutContainersHasNoLeftovers(t *testing.T) {
	require.Empty(t, lookAt(t, emptyNode(t)))
}

// emptyNode is a node on which a daemon of ours runs and no container is.
func emptyNode(t *testing.T) string {
	top := t.TempDir()
	for path, data := range map[string]string{
		"proc/mounts":           "/dev/vda / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n",
		"proc/6/comm":           "containerd\n",
		"run/containerd/a.sock": "",
		"sys/fs/cgroup/system.slice/containerd.service/cgroup.procs": "6\n",
	} {
		put(t, top, path, data)
	}
	for _, dir := range []string{
		"run/containerd/io.containerd.runtime.v2.task/vm", "var/lib/containerd/io.containerd.runtime.v2.task/vm",
		"run/containerd/s", "run/containerd/fifo", "run/containerd/runc/vm", "sys/fs/cgroup/vm",
	} {
		require.NoError(t, os.MkdirAll(filepath.Join(top, dir), 0o755))
	}
	return top
}

func put(t *testing.T, top, path, data string) {
	path = filepath.Join(top, path)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(data), 0o644))
}

func lookAt(t *testing.T, top string) string {
	var out bytes.Buffer
	require.NoError(t, look(&out, top, "vm"))
	return out.String()
}
