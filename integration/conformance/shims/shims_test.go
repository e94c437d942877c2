// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/box"
	"github.com/shimyard/shimyard/integration/conformance/procs"
)

func TestRun(t *testing.T) {
	each(t, func(n *node) {
		for i := range 3 { // the id serves again
			j := n.run("run", []string{"sh", "-c", fmt.Sprintf("sleep 1; exit %d", i)})
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", procs.Parent(n.t, j.pid())))
			require.NoError(n.t, err)
			require.Contains(n.t, exe, filepath.Join(box.Dir, "shims"), "the shim under test")
			require.Equal(n.t, n.code(i), j.end(0))
			j.remove()
		}
	})
}

func TestExec(t *testing.T) {
	each(t, func(n *node) {
		j := n.obedient("exec")
		code, out := j.exec("one", "sh", "-c", "echo yes; exit 4")
		require.Equal(n.t, 4, code)
		require.Equal(n.t, "yes", out)
		require.Equal(n.t, n.code(7), j.end(syscall.SIGTERM))
	})
}

func TestPause(t *testing.T) {
	each(t, func(n *node) {
		j := n.obedient("pause")
		require.NoError(n.t, j.task.Pause(n.t.Context()))
		require.Equal(n.t, client.Paused, j.status().Status)
		require.NoError(n.t, j.task.Resume(n.t.Context()))
		require.Equal(n.t, client.Running, j.status().Status)
		require.Equal(n.t, n.code(7), j.end(syscall.SIGTERM))
	})
}

func TestStatsAndPids(t *testing.T) {
	each(t, func(n *node) {
		j := n.obedient("stats")
		m, err := j.task.Metrics(n.t.Context())
		require.NoError(n.t, err)
		require.NotEmpty(n.t, m.Data.GetValue())
		list, err := j.task.Pids(n.t.Context())
		require.NoError(n.t, err)
		var pids []int
		for _, p := range list {
			pids = append(pids, int(p.Pid))
		}
		require.Contains(n.t, pids, j.pid())
		require.Equal(n.t, n.code(7), j.end(syscall.SIGTERM))
	})
}

func TestStartOptions(t *testing.T) {
	each(t, func(n *node) {
		const path = "/shims-of-the-test"
		makeCgroup(n.t, path)
		j := n.obedient("options", func(o *options.Options) { o.ShimCgroup = path })
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", procs.Parent(n.t, j.pid())))
		require.NoError(n.t, err)
		require.Contains(n.t, string(data), ":"+path+"\n")
		require.Equal(n.t, n.code(7), j.end(syscall.SIGTERM))
	})
}

// makeCgroup makes the cgroup in each hierarchy.
func makeCgroup(t *testing.T, path string) {
	t.Helper()
	const top = "/sys/fs/cgroup"
	roots := []string{top}
	if _, err := os.Stat(filepath.Join(top, "cgroup.controllers")); err != nil {
		roots, _ = filepath.Glob(filepath.Join(top, "*")) // the pattern is well-formed
	}
	for _, root := range roots {
		dir := filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(dir, 0o755)) // it ends with the box
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if data, err := os.ReadFile(filepath.Join(root, file)); err == nil && strings.HasSuffix(root, "/cpuset") {
				require.NoError(t, os.WriteFile(filepath.Join(dir, file), data, 0o644))
			}
		}
	}
}

func TestShimIsKilled(t *testing.T) {
	each(t, func(n *node) {
		j := n.obedient("victim")
		wait, err := j.task.Wait(n.t.Context())
		require.NoError(n.t, err)
		pid := j.pid()
		time.Sleep(time.Second) // the client has not sent it yet, and of a dead task the daemon knows nothing
		procs.Signal(n.t, procs.Parent(n.t, pid), syscall.SIGKILL)
		exit := <-wait
		require.NoError(n.t, exit.Error())
		require.EqualValues(n.t, 137, exit.ExitCode())
		procs.Gone(n.t, pid)
		procs.Eventually(n.t, procs.Patience, func() bool {
			_, err := j.task.Status(n.t.Context())
			return errdefs.IsNotFound(err)
		})
	})
}
