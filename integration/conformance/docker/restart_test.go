// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

// ways are how daemons go down, and start again. Each has a subtest.
var ways = []struct {
	name     string
	down, up func(*testing.T, *host)
}{
	{"containerd is stopped", containerdEnds(syscall.SIGTERM), containerdStarts},
	{"containerd is killed", containerdEnds(syscall.SIGKILL), containerdStarts},
	{"dockerd is stopped", dockerdEnds(syscall.SIGTERM), dockerdStarts},
	{"dockerd is killed", dockerdEnds(syscall.SIGKILL), dockerdStarts},
	{"both are killed", func(t *testing.T, h *host) {
		dockerdEnds(syscall.SIGKILL)(t, h)
		containerdEnds(syscall.SIGKILL)(t, h)
	}, func(t *testing.T, h *host) {
		require.NoError(t, h.containerd.Start(t.Context()))
		dockerdStarts(t, h)
	}},
}

func containerdEnds(sig syscall.Signal) func(*testing.T, *host) {
	return func(t *testing.T, h *host) {
		t.Helper()
		if sig == syscall.SIGKILL {
			require.NoError(t, h.containerd.Kill())
		} else {
			require.NoError(t, h.containerd.Stop())
		}
	}
}

func containerdStarts(t *testing.T, h *host) {
	t.Helper()
	require.NoError(t, h.containerd.Start(t.Context()))
	// dockerd connects again at its own pace.
	procs.Eventually(t, procs.Patience, func() bool { return h.code(t, "version") == 0 })
}

func dockerdEnds(sig syscall.Signal) func(*testing.T, *host) {
	return func(t *testing.T, h *host) {
		t.Helper()
		require.NoError(t, h.dockerd.End(sig))
	}
}

func dockerdStarts(t *testing.T, h *host) {
	t.Helper()
	require.NoError(t, h.dockerd.Start(t.Context()))
}

func TestLiveRestore(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			h := theHost(t)
			c := h.shell(t, obedient).ready()
			pid := c.pid()
			way.down(t, h)
			way.up(t, h)
			procs.Eventually(t, procs.Patience, func() bool { return h.code(t, "exec", c.id, "true") == 0 })
			require.Equal(t, pid, c.pid())
			require.Equal(t, "true", c.inspect(".State.Running"))
			h.echo(t, "after")
			h.docker(t, "stop", c.id)
			require.Equal(t, 7, c.await(procs.Patience))
			h.docker(t, "rm", c.id)
			require.Empty(t, h.tasks(t))
		})
	}
}

const (
	// downtime is longer than the pauses at which dockerd tries to connect again.
	downtime = 6 * time.Second
	// news is how long dockerd may take to learn of an exit that it was not told: shims tell for 45 s after a clean
	// stop, and the daemon speaks after them.
	news = 2 * time.Minute
)

// Containers end while a daemon is down. dockerd must know how, afterwards.
func TestExitsWhileADaemonIsDown(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			h := theHost(t)
			dir := t.TempDir()
			ends := h.shell(t, obedient).ready()
			oom := h.shell(t, "echo ready; until [ -e /signal/go ]; do sleep 0.1; done; exec tail /dev/zero",
				"-m", "24m", "--memory-swap", "24m", "-v", dir+":/signal").ready()
			again := h.shell(t, obedient, "--restart=always").ready()
			pid, oomPid, againPid := ends.pid(), oom.pid(), again.pid()

			way.down(t, h)
			terminate(t, pid)
			terminate(t, againPid)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o644))
			procs.Gone(t, oomPid)
			time.Sleep(downtime)
			way.up(t, h)

			t.Run("all", func(t *testing.T) {
				t.Run("exit code", func(t *testing.T) {
					t.Parallel()
					require.Equal(t, 7, ends.in(t).await(news))
				})
				t.Run("OOM", func(t *testing.T) {
					t.Parallel()
					oom := oom.in(t)
					require.Equal(t, 137, oom.await(news))
					require.Equal(t, "true", oom.inspect(".State.OOMKilled"))
				})
				t.Run("restart policy", func(t *testing.T) {
					t.Parallel()
					again := again.in(t)
					procs.Eventually(t, news, func() bool {
						// One that waits to be started again is said to run, too, without a process.
						pid := again.number(".State.Pid")
						return again.inspect(".State.Running") == "true" && pid != 0 && pid != againPid
					})
					require.Equal(t, "yes", again.exec("echo yes"))
				})
			})
		})
	}
}
