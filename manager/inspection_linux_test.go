// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/inspect"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// inspected asks as a client does.
func inspected[T any](y *yard, question any) *T {
	y.Helper()
	answer, err := y.tasks.PluginInfo(y.ctx, question)
	require.NoError(y, err)
	require.IsType(y, new(T), answer)
	return answer.(*T)
}

// TestInspect: what a client is told of shims that answer, of one that does not, and of one that is gone, without a
// call to any.
func TestInspect(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Log: []string{"level=info msg=one", "\x1b[31mtwo"}})
	y.run("c1", "sleep")
	y.exec(y.run("c2", "sleep"), "e1", "sleep")
	y.hurry("c1", "c2")
	cont := y.stop("c2")
	_, err := mustGet(y, "c2").Pids(y.ctx)
	require.Error(t, err)
	y.until("the breaker is open",
		func() bool { return processStateOf(y.instance("c2").process()) == shimproc.Unresponsive })
	states := y.shim.Count(shimtest.KindRPC, "State")

	all := inspected[inspect.ListResponse](y, &inspect.ListRequest{Processes: true}).Instances
	require.Len(t, all, 2)
	for n, want := range []struct{ id, state string }{{"c1", inspect.StateRunning}, {"c2", inspect.StateUnresponsive}} {
		i := all[n]
		require.Equal(t, want.id, i.ID)
		require.Equal(t, testNamespace, i.Namespace)
		require.Equal(t, "task", i.Kind)
		require.Equal(t, want.state, i.State)
		require.Equal(t, "start", i.Source)
		require.Equal(t, y.shim.Path, i.Runtime)
		require.Equal(t, 3, i.API)
		require.Equal(t, 1, i.Tasks)
		require.WithinDuration(t, time.Now(), i.Created, time.Minute)
		require.WithinDuration(t, time.Now(), i.Since, time.Minute)
		require.NotEmpty(t, i.Address)
		require.Equal(t, y.shim.Daemon(want.id).Pid, i.Shim.Pid)
		require.Positive(t, i.Shim.RSS)
		require.NotNil(t, i.Init)
	}
	require.Equal(t, "T", all[1].Shim.State)
	require.Empty(t, inspected[inspect.ListResponse](y, &inspect.ListRequest{Namespace: "other"}).Instances)
	brief := inspected[inspect.ListResponse](y, &inspect.ListRequest{Namespace: testNamespace}).Instances
	require.Zero(t, brief[0].Shim.RSS)

	one := inspected[inspect.InspectResponse](y, &inspect.InspectRequest{Namespace: testNamespace, ID: "c2"})
	require.Equal(t, y.bundle("c2"), one.Bundle)
	require.Equal(t, "unresponsive", one.Connection)
	require.Equal(t, []string{testNamespace + "/c2"}, one.Members)
	require.Equal(t, "RUNNING", one.Status)
	require.Nil(t, one.Exit)
	require.Len(t, one.Execs, 1)
	_, err = y.tasks.PluginInfo(y.ctx, &inspect.InspectRequest{Namespace: testNamespace, ID: "c3"})
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	require.Equal(t, states, y.shim.Count(shimtest.KindRPC, "State"), "nobody was asked")

	cont()
	y.until("the breaker is closed",
		func() bool { return processStateOf(y.instance("c2").process()) == shimproc.Connected })
	y.kill(mustGet(y, "c2"))
	one = inspected[inspect.InspectResponse](y, &inspect.InspectRequest{Namespace: testNamespace, ID: "c2"})
	require.Equal(t, uint32(137), one.Exit.Status)
	y.remove("c1")
	y.remove("c2")
	y.empty()
}

// TestInspectLogsAndDump: the last lines of a shim are there, and one that writes no stacks when it is asked for them
// is not harmed.
func TestInspectLogsAndDump(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Log: []string{"level=info msg=one", "\x1b[31mtwo"}})
	task := y.run("c1", "sleep")
	q := &inspect.LogsRequest{Namespace: testNamespace, ID: "c1"}
	y.until("both lines are there", func() bool { return inspected[inspect.LogsResponse](y, q).Last >= 2 })
	r := inspected[inspect.LogsResponse](y, q)
	require.Equal(t, "level=info msg=one", r.Lines[0].Text)
	require.Equal(t, `\x1b[31mtwo`, r.Lines[1].Text)
	q.Tail = 1
	r = inspected[inspect.LogsResponse](y, q)
	require.Len(t, r.Lines, 1)
	q.After = r.Last
	require.Empty(t, inspected[inspect.LogsResponse](y, q).Lines)

	_, err := y.tasks.PluginInfo(y.ctx, &inspect.DumpRequest{Namespace: testNamespace, ID: "c1"})
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	require.Equal(t, runtime.RunningStatus, y.state(task).Status)
	require.Len(t, y.shim.Procs(), 2, "shim and container go on")
	y.kill(task)
	y.remove("c1")
	y.empty()
}

// TestDumpIsNotFatal: a shim without a handler for the signal is not sent it.
func TestDumpIsNotFatal(t *testing.T) {
	pid := otherProcess(t)
	require.True(t, errdefs.IsFailedPrecondition(pid.DumpStacks()))
	require.True(t, pid.Alive())
}

// TestInspectACleanupThatFails: what is left is named, with since when.
func TestInspectACleanupThatFails(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	kept := y.bundle("c1") + "/rootfs/data"
	require.NoError(t, os.WriteFile(kept, nil, 0o600))
	y.remove("c1")
	all := inspected[inspect.ListResponse](y, &inspect.ListRequest{}).Instances
	require.Len(t, all, 1)
	require.Equal(t, inspect.StateCleaning, all[0].State)
	require.Contains(t, all[0].LastError, "rootfs")
	require.WithinDuration(t, time.Now(), all[0].LastErrorAt, time.Minute)
	require.NoError(t, os.Remove(kept))
	y.empty()
}
