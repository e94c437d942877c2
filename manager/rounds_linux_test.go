// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

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
	y.steady(20, func(n int) {
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
	y.steady(250, func(n int) { y.round(fmt.Sprintf("c%d", n%7), o) })
	_, err = y.tasks.Delete(y.ctx, "keep")
	require.NoError(t, err)
	y.empty()
	y.halt()
	_ = s.srv.Close()
	<-stopped
}
