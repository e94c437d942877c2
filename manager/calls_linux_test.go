// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	apitypes "github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestCalls goes through what TestLife does not.
func TestCalls(t *testing.T) {
	for _, transport := range []string{"ttrpc", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{Transport: transport})
			task := y.run("c1", "sleep")
			pid, err := task.PID(y.ctx)
			require.NoError(t, err)
			require.NoError(t, task.Pause(y.ctx))
			require.Equal(t, runtime.PausedStatus, y.state(task).Status)
			require.NoError(t, task.Resume(y.ctx))
			require.Equal(t, runtime.RunningStatus, y.state(task).Status)
			pids, err := task.Pids(y.ctx)
			require.NoError(t, err)
			require.Equal(t, pid, pids[0].Pid)
			require.Nil(t, pids[0].Info, "not a typed nil")
			stats, err := task.Stats(y.ctx)
			require.NoError(t, err)
			require.NotEmpty(t, stats.TypeUrl)
			require.NoError(t, task.ResizePty(y.ctx, runtime.ConsoleSize{Width: 80, Height: 24}))
			require.NoError(t, task.CloseIO(y.ctx))
			require.NoError(t, task.Update(y.ctx, typeurl.MarshalProto(anyOf(t, &apitypes.Platform{})),
				map[string]string{"a": "b"}))
			image := y.path("image")
			require.NoError(t, task.Checkpoint(y.ctx, image, nil))
			require.FileExists(t, filepath.Join(image, "fake.img"))
			require.True(t, errdefs.IsAlreadyExists(execTwice(y, task)))
			_, err = task.Exec(y.ctx, "../e", runtime.ExecOpts{})
			require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
			_, err = task.Process(y.ctx, "nope")
			require.True(t, errdefs.IsNotFound(err), "%v", err)
			p, err := task.Process(y.ctx, "e1")
			require.NoError(t, err)
			require.NoError(t, p.ResizePty(y.ctx, runtime.ConsoleSize{Width: 80, Height: 24}))
			require.NoError(t, p.CloseIO(y.ctx))
			y.remove("c1")
			y.empty()
			_, err = y.tasks.Get(context.Background(), "c1")
			require.Error(t, err)
		})
	}
}

func execTwice(y *yard, task runtime.Task) error {
	y.exec(task, "e1", "sleep")
	_, err := task.Exec(y.ctx, "e1", runtime.ExecOpts{Spec: typeurl.MarshalProto(anyOf(y, args("sleep").Process))})
	return err
}

// TestUnsupportedMethods: Rust's ttrpc answers a method that it lacks with NotFound; whoever believed it would take the
// container for gone.
func TestUnsupportedMethods(t *testing.T) {
	for _, transport := range []string{"ttrpc", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{Transport: transport, Rules: []shimtest.Rule{
				{Method: "Pids", Unsupported: true}, {Method: "Exec", Unsupported: true},
				{Method: "Pause", Code: "Unimplemented", Message: "no"},
			}})
			task := y.run("c1", "sleep")
			_, err := task.Pids(y.ctx)
			require.True(t, errdefs.IsNotImplemented(err), "%v", err)
			require.False(t, errdefs.IsNotFound(err))
			_, err = task.Exec(y.ctx, "e1", runtime.ExecOpts{})
			require.True(t, errdefs.IsNotImplemented(err), "%v", err)
			require.True(t, errdefs.IsNotImplemented(task.Pause(y.ctx)))
			l, _, _ := y.instance("c1").process().Watch()
			require.Equal(t, 3, l.Task.Version(), "one missing method is no other version")
			y.restart()
			y.inState("c1", life.Running)
			y.remove("c1")
			y.empty()
		})
	}
}

// TestDowngrade: a shim that told version 3 and serves version 2, as a running group does whose binary was upgraded.
func TestDowngrade(t *testing.T) {
	for _, transport := range []string{"ttrpc", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{Transport: transport, Versions: []int{2}})
			y.live("c1", 2)
			y.run("c2", "sleep")
			y.restart()
			y.inState("c2", life.Running)
			y.remove("c2")
			y.empty()
		})
	}
}

// TestGroup: a shim whose answer names an address that is known joins the process there.
func TestGroup(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	for _, id := range []string{"g1", "c2", "c3"} {
		_, err := y.tasks.Create(y.ctx, id, y.grouped("g1"))
		require.NoError(t, err)
	}
	require.Equal(t, 3, y.shim.Count(shimtest.KindExec, "start"))
	require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 1)
	y.oneConnection("c2")
	y.remove("g1")
	require.Zero(t, y.shim.Count(shimtest.KindRPC, "Shutdown"))
	y.restart()
	y.inState("c2", life.Running)
	y.inState("c3", life.Running)
	y.oneConnection("c2")
	y.remove("c2")
	y.remove("c3")
	require.Equal(t, 1, y.shim.Count(shimtest.KindRPC, "Shutdown"))
	y.empty()
}

// TestOptions reach the shim: the task's own, else the runtime's, by either start protocol.
func TestOptions(t *testing.T) {
	for _, g := range []shimtest.Generation{shimtest.Bootstrap, shimtest.Legacy, shimtest.Dropping} {
		t.Run(string(g), func(t *testing.T) {
			var opts []shimtest.InstallOption
			if g != shimtest.Bootstrap {
				opts = append(opts, shimtest.WithoutMarker())
			}
			y := newYard(t, shimtest.Scenario{Generation: g}, opts...)
			o := y.opts("sleep")
			o.RuntimeOptions = anyOf(t, &runcoptions.Options{ShimCgroup: "/runtime"})
			_, err := y.tasks.Create(y.ctx, "c1", o)
			require.NoError(t, err)
			o.TaskOptions = anyOf(t, &runcoptions.Options{ShimCgroup: "/task"})
			_, err = y.tasks.Create(y.ctx, "c2", o)
			require.NoError(t, err)
			starts := y.shim.Find(shimtest.KindExec, "start")
			require.Len(t, starts, 2)
			require.Contains(t, string(starts[0].Applied[0].Decoded), "/runtime")
			require.Contains(t, string(starts[1].Applied[0].Decoded), "/task")
			y.remove("c1")
			y.remove("c2")
			y.empty()
		})
	}
}

// TestRestoreFromCheckpoint as CRI does it: the rootfs diff goes in before the process starts, and the task comes back
// running.
func TestRestoreFromCheckpoint(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	image := y.path("archive", "checkpoint")
	require.NoError(t, os.MkdirAll(image, 0o700))
	var diff bytes.Buffer
	w := tar.NewWriter(&diff)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "changed", Mode: 0o600, Size: 4, Typeflag: tar.TypeReg}))
	_, err := w.Write([]byte("data"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(filepath.Join(image, "..", "rootfs-diff.tar"), diff.Bytes(), 0o600))

	o := y.opts("sleep")
	o.Checkpoint, o.RestoreFromPath = image, true
	task, err := y.tasks.Create(y.ctx, "c1", o)
	require.NoError(t, err)
	changed := filepath.Join(y.bundle("c1"), "rootfs", "changed")
	data, err := os.ReadFile(changed)
	require.NoError(t, err)
	require.Equal(t, "data", string(data))
	s := y.state(task)
	require.Equal(t, runtime.RunningStatus, s.Status)
	pid, err := task.PID(y.ctx)
	require.NoError(t, err)
	require.Equal(t, s.Pid, pid)
	require.NoError(t, os.Remove(changed))
	y.remove("c1")

	require.NoError(t, os.WriteFile(filepath.Join(image, "..", "rootfs-diff.tar"), []byte("no tar"), 0o600))
	_, err = y.tasks.Create(y.ctx, "c1", o)
	require.ErrorContains(t, err, "rootfs-diff.tar")
	y.empty()
	require.Empty(t, y.shim.Procs())

	// A restore in the other way has no pid before its start.
	o.RestoreFromPath = false
	task, err = y.tasks.Create(y.ctx, "c1", o)
	require.NoError(t, err)
	pid, err = task.PID(y.ctx)
	require.NoError(t, err)
	require.Zero(t, pid)
	require.NoError(t, task.Start(y.ctx))
	pid, err = task.PID(y.ctx)
	require.NoError(t, err)
	require.NotZero(t, pid)
	y.remove("c1")
	y.empty()
}

// TestStdio is told back by State, also from the record.
func TestStdio(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	o := y.opts("sleep")
	out := y.path("out")
	require.NoError(t, os.WriteFile(out, nil, 0o600))
	o.IO = runtime.IO{Stdout: out, Terminal: false}
	task, err := y.tasks.Create(y.ctx, "c1", o)
	require.NoError(t, err)
	require.NoError(t, task.Start(y.ctx))
	require.Equal(t, out, y.state(task).Stdout)
	cont := y.stop("c1")
	y.restart()
	require.Equal(t, out, y.state(mustGet(y, "c1")).Stdout)
	cont()
	y.inState("c1", life.Running)
	y.remove("c1")
	y.empty()
}
