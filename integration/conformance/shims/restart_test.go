// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

// runsOn tells that the container runs on as it did before, and ends it.
func (j *job) runsOn() {
	j.n.t.Helper()
	j.again()
	require.Equal(j.n.t, client.Running, j.status().Status)
	if !j.n.g.NoExec {
		code, out := j.exec("after", "echo", "yes")
		require.Zero(j.n.t, code)
		require.Equal(j.n.t, "yes", out)
	}
	require.Equal(j.n.t, j.n.code(7), j.end(syscall.SIGTERM))
}

func TestRestartAfterStop(t *testing.T) { restart(t, syscall.SIGTERM) }
func TestRestartAfterKill(t *testing.T) { restart(t, syscall.SIGKILL) }

func restart(t *testing.T, sig syscall.Signal) {
	each(t, func(n *node) {
		j := n.obedient("restart")
		n.down(sig)
		n.up()
		j.runsOn()
		require.Equal(n.t, n.code(3), n.run("next", []string{"sh", "-c", "sleep 1; exit 3"}).end(0))
	})
}

func TestExitWhileDown(t *testing.T) {
	each(t, func(n *node) {
		j := n.obedient("down")
		n.down(syscall.SIGKILL)
		procs.Signal(n.t, j.pid(), syscall.SIGTERM)
		procs.Gone(n.t, j.pid())
		n.up()
		j.again()
		require.Equal(n.t, n.code(7), j.end(0))
	})
}

// stall is longer than the deadline of one call to a shim.
const stall = 8 * time.Second

// A shim that is stalled while the daemon starts costs nobody a container.
func TestStallOverRestart(t *testing.T) {
	each(t, func(n *node) {
		j := n.obedient("stall")
		pid := j.pid()
		shim := procs.Parent(n.t, pid)
		procs.Signal(n.t, shim, syscall.SIGSTOP)
		n.t.Cleanup(func() { _ = syscall.Kill(shim, syscall.SIGCONT) }) // it may be gone
		n.down(syscall.SIGTERM)
		n.up()
		time.Sleep(stall)
		require.True(n.t, procs.Alive(pid), "the container is alive")
		if !n.g.NoConnect {
			j.again()
		}
		procs.Signal(n.t, shim, syscall.SIGCONT)
		procs.Eventually(n.t, procs.Patience, j.answered)
		j.runsOn()
	})
}

// answered tells whether the shim itself answers. The state is known without it, unless it has no Connect.
func (j *job) answered() bool {
	c, err := j.n.client.LoadContainer(j.n.t.Context(), j.id)
	require.NoError(j.n.t, err)
	task, err := c.Task(j.n.t.Context(), nil)
	if err == nil && !j.n.g.NoConnect {
		_, err = task.Pids(j.n.t.Context())
	}
	return err == nil
}

// A container that stock started is in good hands with the daemon under test.
func TestUpgrade(t *testing.T) {
	for _, g := range Generations {
		t.Run(g.Name, func(t *testing.T) {
			n := start(t, g, true)
			j := n.obedient("upgrade")
			n.down(syscall.SIGTERM)
			asUnderTest(t)
			n.up()
			j.runsOn()
		})
	}
}

// And the other way.
func TestRollback(t *testing.T) {
	each(t, func(n *node) {
		j := n.obedient("rollback")
		n.down(syscall.SIGTERM)
		asStock(n.t)
		n.up()
		j.runsOn()
	})
}
