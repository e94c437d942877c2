// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"net"
	"os"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// steady requires that rounds leave the daemon with the descriptors and goroutines that it had.
func (y *yard) steady(rounds int, round func(n int)) {
	y.Helper()
	for n := range 3 { // what is made once and stays
		round(n)
	}
	fds, routines := openFiles(y.T), goruntime.NumGoroutine()
	for n := range rounds {
		round(n)
	}
	y.until("the descriptors are as they were", func() bool { return openFiles(y.T) <= fds })
	y.until("the goroutines are as they were", func() bool { return goruntime.NumGoroutine() <= routines })
}

func (y *yard) round(id string, o runtime.CreateOpts) {
	y.Helper()
	task, err := y.tasks.Create(y.ctx, id, o)
	require.NoError(y, err)
	require.NoError(y, task.Start(y.ctx))
	require.NoError(y, task.Kill(y.ctx, 9, true))
	_, err = task.Wait(y.ctx)
	require.NoError(y, err)
	_, err = y.tasks.Delete(y.ctx, id)
	require.NoError(y, err)
}

func openFiles(t *testing.T) int {
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(fds)
}

// TestRounds with processes: most in a sandbox, some with a shim of their own.
func TestRounds(t *testing.T) {
	y := runcYard(t, shimtest.Scenario{Sandbox: true})
	y.box("s1")
	o := y.runcOpts("sleep")
	o.SandboxID = "s1"
	y.round("c0", o)
	y.events.await("c0", deleteTopic, 1) // its shim's connection for events has come to stay
	rounds := 40
	if testing.Short() {
		rounds = 15
	}
	y.steady(rounds, func(n int) {
		o := y.runcOpts("sleep")
		if n%5 != 0 {
			o.SandboxID = "s1"
		}
		y.round(fmt.Sprintf("c%d", n%7), o)
	})
	y.m.mu.Lock()
	require.Len(t, y.m.instances, 1)
	require.Len(t, y.m.procs.All(), 1)
	y.m.mu.Unlock()
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	y.empty()
}

// TestManyRounds with a shim in this process, which saves all execs.
func TestManyRounds(t *testing.T) {
	y := runcYard(t, shimtest.Scenario{})
	s := newMemShim(t)
	path := y.path("m.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	stopped := s.serve(l)
	s.exitWith(137, time.Now())
	y.sandboxes.add("s1")
	o := y.runcOpts("sleep")
	o.SandboxID, o.Address, o.Version = "s1", "ttrpc+unix://"+path, 3
	_, err = y.tasks.Create(y.ctx, "keep", o)
	require.NoError(t, err)
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	y.steady(rounds, func(n int) { y.round(fmt.Sprintf("c%d", n%7), o) })
	_, err = y.tasks.Delete(y.ctx, "keep")
	require.NoError(t, err)
	y.empty()
	y.halt()
	_ = s.srv.Close()
	<-stopped
}
