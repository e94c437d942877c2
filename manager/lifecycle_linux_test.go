// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestLife takes a container through its life with shims of every generation, transport, version and form of reply.
func TestLife(t *testing.T) {
	for _, c := range []struct {
		name     string
		scenario shimtest.Scenario
		opts     []shimtest.InstallOption
		version  int
	}{
		{name: "bootstrap", version: 3},
		{name: "grpc", scenario: shimtest.Scenario{Transport: "grpc"}, version: 3},
		{name: "version 2", scenario: shimtest.Scenario{Reply: shimtest.Reply{Version: 2}}, version: 2},
		{name: "grpc version 2", scenario: shimtest.Scenario{Transport: "grpc", Reply: shimtest.Reply{Version: 2}},
			version: 2},
		{name: "json reply", scenario: shimtest.Scenario{Reply: shimtest.Reply{Format: shimtest.JSON}}, version: 3},
		{name: "containerd 1.6", scenario: shimtest.Scenario{Generation: shimtest.Legacy}, version: 2,
			opts: []shimtest.InstallOption{shimtest.WithoutMarker()}},
		{name: "answer in the bundle alone", scenario: shimtest.Scenario{Generation: shimtest.Legacy,
			Reply: shimtest.Reply{Format: shimtest.Empty, Version: 2}}, version: 2,
			opts: []shimtest.InstallOption{shimtest.WithoutMarker()}},
		{name: "containerd 1.7", scenario: shimtest.Scenario{Generation: shimtest.Dropping}, version: 3,
			opts: []shimtest.InstallOption{shimtest.WithoutMarker()}},
		{name: "script", scenario: shimtest.Scenario{Generation: shimtest.Legacy}, version: 2,
			opts: []shimtest.InstallOption{shimtest.WithScript()}},
		{name: "no stdin", scenario: shimtest.Scenario{Generation: shimtest.Lenient,
			Reply: shimtest.Reply{Format: shimtest.JSON}}, version: 3},
		{name: "bare path", scenario: shimtest.Scenario{Socket: shimtest.Bare, Transport: "grpc"}, version: 3},
		{name: "abstract", scenario: shimtest.Scenario{Socket: shimtest.Abstract}, version: 3},
		{name: "hvsock", scenario: shimtest.Scenario{Socket: shimtest.HVsock}, version: 3},
		{name: "noisy", scenario: shimtest.Scenario{
			Start:  shimtest.StartFaults{Stderr: "warning: old kernel\n"},
			Delete: shimtest.DeleteFaults{Stderr: "warning\n"},
			Log:    []string{`level=info msg=hello`},
		}, version: 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t, c.scenario, c.opts...)
			y.live("c1", c.version)
			y.empty()
			if c.name == "bootstrap" { // the id is free at once
				y.live("c1", c.version)
				y.empty()
			}
		})
	}
}

func (y *yard) live(id string, version int) {
	y.Helper()
	task := y.create(id, "sleep")
	require.Equal(y, id, task.ID())
	require.Equal(y, testNamespace, task.Namespace())
	pid, err := task.PID(y.ctx)
	require.NoError(y, err)
	require.NotZero(y, pid)
	require.Equal(y, runtime.CreatedStatus, y.state(task).Status)
	l, _, _ := y.instance(id).process().Watch()
	require.Equal(y, version, l.Task.Version())

	require.NoError(y, task.Start(y.ctx))
	require.Equal(y, runtime.State{Status: runtime.RunningStatus, Pid: pid}, y.state(task))
	y.liveExec(task)

	exited := y.waiting(task)
	require.NoError(y, task.Kill(y.ctx, 15, false))
	w := <-exited
	require.NoError(y, w.err)
	require.Equal(y, uint32(128+15), w.exit.Status)
	require.Equal(y, pid, w.exit.Pid)
	s := y.state(task)
	require.Equal(y, runtime.StoppedStatus, s.Status)
	require.Equal(y, uint32(128+15), s.ExitStatus)

	exit, err := y.tasks.Delete(y.ctx, id)
	require.NoError(y, err)
	require.Equal(y, uint32(128+15), exit.Status)
	require.Equal(y, pid, exit.Pid)
	require.True(y, exit.Timestamp.Equal(s.ExitedAt))
	_, err = y.tasks.Get(y.ctx, id)
	require.True(y, errdefs.IsNotFound(err), "%v", err)
}

func (y *yard) liveExec(task runtime.Task) {
	y.Helper()
	p := y.exec(task, "e1", "exit-after", "20", "7")
	require.Equal(y, "e1", p.ID())
	exit, err := p.Wait(y.ctx)
	require.NoError(y, err)
	require.Equal(y, uint32(7), exit.Status)
	require.Equal(y, runtime.StoppedStatus, y.state(p).Status)
	again, err := task.Process(y.ctx, "e1")
	require.NoError(y, err)
	deleted, err := again.Delete(y.ctx)
	require.NoError(y, err)
	require.Equal(y, uint32(7), deleted.Status)
	require.Equal(y, exit.Pid, deleted.Pid)
	_, err = task.Process(y.ctx, "e1")
	require.True(y, errdefs.IsNotFound(err), "%v", err)

	p = y.exec(task, "e2", "sleep")
	exited := y.waiting(p)
	require.NoError(y, p.Kill(y.ctx, 9, false))
	w := <-exited
	require.NoError(y, w.err)
	require.Equal(y, uint32(137), w.exit.Status)
	_, err = p.Delete(y.ctx)
	require.NoError(y, err)
}
