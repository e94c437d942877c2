// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestRecordsAreReadBehindTheStart: until the records are read all tasks are listed, nobody is connected to, and
// creates wait. Who asks for one task is answered from its record.
func TestRecordsAreReadBehindTheStart(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	pid := y.state(y.run("c1", "sleep")).Pid
	y.run("c2", "sleep")
	leftover := y.path("root", testNamespace, "c3")
	require.NoError(t, os.MkdirAll(leftover, 0o700))
	y.halt()
	y.list()

	all, err := y.tasksOf().Tasks(context.Background(), true)
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Empty(t, y.m.procs.All())
	require.DirExists(t, leftover)
	hear(t, y.m, testNamespace, exitEvent("c2", "c2", 1<<30, 1)) // of an earlier task, which only the record tells
	require.Nil(t, y.instance("c2").ledger.Exit(""))

	task, err := y.tasksOf().Get(y.ctx, "c1")
	require.NoError(t, err)
	s := y.state(task)
	require.Equal(t, runtime.RunningStatus, s.Status)
	require.Equal(t, pid, s.Pid)
	created := make(chan error, 1)
	go func() {
		_, err := y.tasksOf().Create(y.ctx, "c3", y.opts("sleep"))
		created <- err
	}()
	time.Sleep(100 * time.Millisecond) // whoever does not wait would be through
	require.Empty(t, created)
	require.DirExists(t, leftover)

	y.begin()
	require.NoError(t, <-created)
	require.Nil(t, y.instance("c2").ledger.Exit(""))
	for _, id := range []string{"c1", "c2", "c3"} {
		y.remove(id)
	}
	y.empty()
}

// TestExecExitWhileDown: an exec that has ended while the daemon was down, with init running, is asked about unasked.
func TestExecExitWhileDown(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.exec(y.run("c1", "sleep"), "e1", "exit-after", "300", "7")
	y.restart(func() {
		y.until("the exec has ended", func() bool { return len(y.shim.Procs(shimtest.RoleGuest)) == 1 })
	})
	y.until("its exit is on record", func() bool {
		x := y.record("c1").Execs["e1"]
		return x != nil && x.Exit != nil
	})
	require.Equal(t, uint32(7), y.instance("c1").ledger.Exit("e1").Status)
	y.remove("c1")
	y.empty()
}
