// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

// flock are pods that are to live through something.
type flock struct {
	h    *host
	pods []*pod
	was  map[*pod][2]int // their pids
}

// flock runs some pods of two containers each.
func (h *host) flock(t *testing.T) *flock {
	t.Helper()
	f := &flock{h: h, was: map[*pod][2]int{}}
	for i := range 3 {
		f.pods = append(f.pods, h.run(t, fmt.Sprint("flock-", i), nil, container("a", obedient),
			container("b", obedient)))
	}
	for _, p := range f.pods {
		p.ready()
		f.was[p] = [2]int{p.pid("a"), p.pid("b")}
	}
	return f
}

// lives tells that nothing was restarted. A pod that begins and ends now shows that kubelet has seen how things are.
func (f *flock) lives(t *testing.T) {
	t.Helper()
	after := f.h.run(t, "after", nil, container("c", obedient)).ready()
	after.remove()
	for _, p := range f.pods {
		p.ready()
		require.Equal(t, f.was[p], [2]int{p.pid("a"), p.pid("b")})
		for _, name := range []string{"a", "b"} {
			require.Zero(t, p.container(name).RestartCount)
			require.Equal(t, "yes", f.h.Exec(t, p.id(name), "echo yes"))
		}
		require.Len(t, p.sandboxes(), 1)
	}
}

func TestDaemonIsStopped(t *testing.T) { daemonRestart(t, syscall.SIGTERM) }
func TestDaemonIsKilled(t *testing.T)  { daemonRestart(t, syscall.SIGKILL) }

func daemonRestart(t *testing.T, sig syscall.Signal) {
	h := theHost(t)
	f := h.flock(t)
	h.restart(t, sig)
	f.lives(t)

	h.daemonEnds(t, sig)
	time.Sleep(stall) // kubelet tries in vain
	h.daemonStarts(t)
	f.lives(t)
}

// stall is longer than what a kubelet's and a daemon's calls wait for.
const stall = 12 * time.Second

func TestDaemonStalls(t *testing.T) {
	h := theHost(t)
	f := h.flock(t)
	procs.Signal(t, h.Pid(), syscall.SIGSTOP)
	time.Sleep(stall)
	procs.Signal(t, h.Pid(), syscall.SIGCONT)
	f.lives(t)
}

func TestShimsStall(t *testing.T) {
	h := theHost(t)
	f := h.flock(t)
	f.shims(t, syscall.SIGSTOP)
	time.Sleep(stall)
	f.shims(t, syscall.SIGCONT)
	f.lives(t)
}

func TestShimsStallOverARestart(t *testing.T) {
	h := theHost(t)
	f := h.flock(t)
	f.shims(t, syscall.SIGSTOP)
	t.Cleanup(func() { f.shims(t, syscall.SIGCONT) })
	h.restart(t, syscall.SIGTERM)
	time.Sleep(stall)
	f.shims(t, syscall.SIGCONT)
	f.lives(t)
}

// shims sends all shims of the pods a signal.
func (f *flock) shims(t *testing.T, sig syscall.Signal) {
	t.Helper()
	for _, p := range f.pods {
		for _, pid := range f.was[p] {
			if procs.Alive(pid) {
				procs.Signal(t, procs.Parent(t, pid), sig)
			}
		}
	}
}

func TestKubeletRestarts(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			h := theHost(t)
			f := h.flock(t)
			require.NoError(t, h.kubelet.End(sig))
			h.restart(t, sig)
			require.NoError(t, h.kubelet.Start(t.Context()))
			f.lives(t)
		})
	}
}

// A container ends while the daemon is down. Kubelet learns how, and starts it again.
func TestExitWhileTheDaemonIsDown(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "down", nil, container("c", obedient), container("other", obedient)).ready()
	pid, other := p.pid("c"), p.pid("other")
	h.daemonEnds(t, syscall.SIGKILL)
	procs.Trapped(t, pid, syscall.SIGTERM)
	procs.Signal(t, pid, syscall.SIGTERM)
	procs.Gone(t, pid)
	h.daemonStarts(t)
	c := p.await("c", restarted(1))
	require.Equal(t, 7, c.LastState.Terminated.ExitCode)
	require.Equal(t, 1, c.RestartCount)
	require.Zero(t, p.container("other").RestartCount)
	require.Equal(t, other, p.pid("other"))
}

// A shim dies, and its pod with it. Kubelet starts all of it again, once.
func TestShimIsKilled(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "shim", nil, container("a", obedient), container("b", obedient)).ready()
	a, b, sandbox := p.pid("a"), p.pid("b"), p.sandboxes()[0]
	procs.Signal(t, procs.Parent(t, a), syscall.SIGKILL)
	procs.Gone(t, a)
	procs.Gone(t, b)
	for _, name := range []string{"a", "b"} {
		p.await(name, restarted(1))
	}
	p.ready()
	require.Len(t, p.sandboxes(), 1)
	require.NotEqual(t, sandbox, p.sandboxes()[0])
	require.Len(t, p.alive(), 3)
}
