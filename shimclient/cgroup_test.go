// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestMemoryCgroup(t *testing.T) {
	for _, c := range []struct{ name, lines, want string }{
		{"version 2", "0::/kubepods/pod1/c1\n", "/sys/fs/cgroup/kubepods/pod1/c1"},
		{"version 1", "4:memory:/docker/c1\n3:cpuset:/docker/c1\n0::/\n", "/sys/fs/cgroup/memory/docker/c1"},
		{"both", "0::/unified\n4:cpu,memory:/docker/c1\n", "/sys/fs/cgroup/memory/docker/c1"},
		{"a colon in the path", "0::/system.slice/a:b\n", "/sys/fs/cgroup/system.slice/a:b"},
		{"named memory", "2:name=memory:/other\n0::/c1\n", "/sys/fs/cgroup/c1"},
		{"the root", "4:memory:/\n0::/c1\n", ""},
		{"outside of the namespace", "0::/../c1\n", ""},
		{"without a memory controller", "3:cpuset:/c1\n", ""},
		{"relative", "0::c1\n", ""},
		{"nothing", "", ""},
		{"garbage", "memory\n0:\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := memoryCgroup(c.lines)
			if c.want == "" {
				require.True(t, errdefs.IsNotFound(err), "%q, %v", got, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
	_, err := MemoryCgroup(1 << 30)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

func TestOOMKills(t *testing.T) {
	for _, c := range []struct {
		name, file, text string
		want             uint64
		fails            bool
	}{
		{"version 2", "memory.events", "low 0\nhigh 0\nmax 40\noom 3\noom_kill 2\noom_group_kill 0\n", 2, false},
		{"version 2, none", "memory.events", "oom 0\noom_kill 0\n", 0, false},
		{"version 1", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5, false},
		{"version 1 of an old kernel", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 0, true},
		{"garbage", "memory.events", "oom_kill many\n", 0, true},
		{"another file", "memory.stat", "oom_kill 1\n", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, c.file), []byte(c.text), 0o600))
			got, err := OOMKills(dir)
			require.Equal(t, c.fails, err != nil, "%v", err)
			require.Equal(t, c.want, got)
		})
	}
	_, err := OOMKills(filepath.Join(t.TempDir(), "gone"))
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}
