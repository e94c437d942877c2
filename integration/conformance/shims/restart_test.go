// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// runsOn tells that the container runs on as it did before, and ends it.
func (j *job) runsOn() {
	j.n.t.Helper()
	j.again()
	code, out := j.exec("after", "echo", "yes")
	require.Zero(j.n.t, code)
	require.Equal(j.n.t, "yes", out)
	require.Equal(j.n.t, 7, j.end(syscall.SIGTERM))
}

func TestRestartAfterStop(t *testing.T) { restart(t, syscall.SIGTERM) }
func TestRestartAfterKill(t *testing.T) { restart(t, syscall.SIGKILL) }

func restart(t *testing.T, sig syscall.Signal) {
	each(t, func(n *node) {
		j := n.obedient("restart")
		n.down(sig)
		n.up()
		j.runsOn()
		require.Equal(n.t, 3, n.run("next", []string{"sh", "-c", "sleep 1; exit 3"}).end(0))
	})
}

func TestExitWhileDown(t *testing.T) {
	each(t, func(n *node) {
		j := n.obedient("down")
		n.down(syscall.SIGKILL)
		signal(n.t, j.pid(), syscall.SIGTERM)
		gone(n.t, j.pid())
		n.up()
		j.again()
		require.Equal(n.t, 7, j.end(0))
	})
}

// stall is longer than the deadline of one call to a shim.
const stall = 8 * time.Second

// A shim that is stalled while the daemon starts costs nobody a container.
func TestStallOverRestart(t *testing.T) {
	each(t, func(n *node) {
		j := n.obedient("stall")
		pid := j.pid()
		shim := parent(n.t, pid)
		signal(n.t, shim, syscall.SIGSTOP)
		n.t.Cleanup(func() { _ = syscall.Kill(shim, syscall.SIGCONT) }) // it may be gone
		n.down(syscall.SIGTERM)
		n.up()
		time.Sleep(stall)
		require.NotEmpty(n.t, stat(pid), "the container is alive")
		j.again() // while its shim is silent
		signal(n.t, shim, syscall.SIGCONT)
		eventually(n.t, patience, func() bool { _, err := j.task.Pids(n.t.Context()); return err == nil })
		j.runsOn()
	})
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
