// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

func (k *task) exec(id, execID string, args ...string) {
	k.t.Helper()
	spec, err := json.Marshal(map[string]any{"args": args})
	require.NoError(k.t, err)
	k.must("Exec", &taskapi.ExecProcessRequest{ID: id, ExecID: execID, Spec: &anypb.Any{Value: spec}}, &emptypb.Empty{})
}

func TestExits(t *testing.T) {
	cases := map[string]struct {
		args []string
		sig  uint32
		want uint32
	}{
		"code":         {[]string{"exit", "7"}, 0, 7},
		"later":        {[]string{"exit-after", "5", "9"}, 0, 9},
		"slept":        {[]string{"sleep", "0.001"}, 0, 0},
		"a signal":     {[]string{"die", "SEGV"}, 0, 139},
		"terminated":   {[]string{"sleep"}, 15, 143},
		"killed":       {[]string{"whatever"}, 9, 137},
		"from nowhere": {nil, 9, 137},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Scenario{})
			r.config(nil, c.args...)
			k := r.dial(r.start(r.bootstrapStdin()))
			pid := k.create(r)
			k.start(r.id, "")
			if c.sig != 0 {
				k.kill(r.id, c.sig)
			}
			require.Equal(t, c.want, k.wait(r.id, ""))
			var rec exitRecord
			data, err := os.ReadFile(filepath.Join(r.bundle, "exit.json"))
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(data, &rec))
			require.Equal(t, []int{int(pid), int(c.want)}, []int{rec.Pid, rec.Status})
			st := k.state(r.id, "")
			require.Equal(t, tasktypes.Status_STOPPED, st.Status)
			require.Equal(t, c.want, st.ExitStatus)
			err = k.try("Kill", &taskapi.KillRequest{ID: r.id, Signal: 9}, &emptypb.Empty{})
			require.Equal(t, codes.NotFound, status.Code(err))
			del := k.delete(r.id, "")
			require.Equal(t, []uint32{pid, c.want}, []uint32{del.Pid, del.ExitStatus})
			exit := r.events.Await("/tasks/exit", r.id, 1)[0].Message.(*events.TaskExit)
			require.True(t, proto.Equal(exit.ExitedAt, del.ExitedAt))
			require.Equal(t, []uint32{pid, c.want}, []uint32{exit.Pid, exit.ExitStatus})
			k.shutdown(r.id)
		})
	}
}

func TestExecs(t *testing.T) {
	r, k := running(t, Scenario{})
	k.exec(r.id, "e1", "exit", "5")
	require.Equal(t, tasktypes.Status_CREATED, k.state(r.id, "e1").Status)
	pid := k.start(r.id, "e1")
	require.EqualValues(t, 5, k.wait(r.id, "e1"))
	require.Equal(t, pid, k.delete(r.id, "e1").Pid)
	require.Error(t, k.try("State", &taskapi.StateRequest{ID: r.id, ExecID: "e1"}, &taskapi.StateResponse{}))

	k.exec(r.id, "e2", "sleep")
	pid = k.start(r.id, "e2")
	pids := &taskapi.PidsResponse{}
	k.must("Pids", &taskapi.PidsRequest{ID: r.id}, pids)
	require.Len(t, pids.Processes, 2)
	details := &options.ProcessDetails{}
	require.NoError(t, pids.Processes[1].Info.UnmarshalTo(details))
	require.Equal(t, "e2", details.ExecID)
	require.Equal(t, pid, pids.Processes[1].Pid)
	stats := &taskapi.StatsResponse{}
	k.must("Stats", &taskapi.StatsRequest{ID: r.id}, stats)
	require.NotEmpty(t, stats.Stats.Value)

	// The exec ends with the init, and is told of first.
	k.kill(r.id, 9)
	require.EqualValues(t, 137, k.wait(r.id, ""))
	var ids []string
	for _, e := range r.events.Await("/tasks/exit", r.id, 3) {
		ids = append(ids, e.Message.(*events.TaskExit).ID)
	}
	require.Equal(t, []string{"e1", "e2", r.id}, ids)
	require.Error(t, k.try("Start", &taskapi.StartRequest{ID: r.id, ExecID: "e2"}, &taskapi.StartResponse{}))
	k.delete(r.id, "")
	k.shutdown(r.id)
}

func TestIgnoredSignalAndKillAll(t *testing.T) {
	r := newRig(t, Scenario{Init: []string{"ignore", "TERM", "INT"}})
	k := r.dial(r.start(r.bootstrapStdin()))
	k.create(r)
	k.start(r.id, "")
	k.exec(r.id, "e1", "sleep")
	k.start(r.id, "e1")
	k.must("Kill", &taskapi.KillRequest{ID: r.id, Signal: 15, All: true}, &emptypb.Empty{})
	require.EqualValues(t, 143, k.wait(r.id, "e1"))
	require.Equal(t, tasktypes.Status_RUNNING, k.state(r.id, "").Status)
	k.finish(r)
}

func TestRefusedCalls(t *testing.T) {
	r, k := running(t, Scenario{})
	code := func(method string, req, resp proto.Message) codes.Code { return status.Code(k.try(method, req, resp)) }
	require.Equal(t, codes.AlreadyExists, code("Create", &taskapi.CreateTaskRequest{ID: r.id, Bundle: r.bundle},
		&taskapi.CreateTaskResponse{}))
	require.Equal(t, codes.NotFound, code("State", &taskapi.StateRequest{ID: "other"}, &taskapi.StateResponse{}))
	require.Equal(t, codes.NotFound, code("State", &taskapi.StateRequest{ID: r.id, ExecID: "e"},
		&taskapi.StateResponse{}))
	require.Equal(t, codes.Unknown, code("Start", &taskapi.StartRequest{ID: r.id}, &taskapi.StartResponse{}))
	err := k.try("Delete", &taskapi.DeleteRequest{ID: r.id}, &taskapi.DeleteResponse{})
	require.ErrorContains(t, err, "cannot delete a running process")
	k.shutdown(r.id) // does nothing while there is a task
	require.NoError(t, k.tryState(r.id))

	r.config(nil, "missing")
	err = k.try("Create", &taskapi.CreateTaskRequest{ID: "c2", Bundle: r.bundle}, &taskapi.CreateTaskResponse{})
	require.ErrorContains(t, err, "executable file not found")
	require.Equal(t, codes.NotFound, code("State", &taskapi.StateRequest{ID: "c2"}, &taskapi.StateResponse{}))
	k.finish(r)
}

// A task that was never started can be deleted, and its exit is told.
func TestDeleteCreated(t *testing.T) {
	r := newRig(t, Scenario{})
	k := r.dial(r.start(r.bootstrapStdin()))
	k.create(r)
	require.EqualValues(t, 137, k.delete(r.id, "").ExitStatus)
	r.events.Await("/tasks/delete", r.id, 1)
	require.Equal(t, []string{"/tasks/create", "/tasks/exit", "/tasks/delete"}, r.events.Topics(r.id))
	k.shutdown(r.id)
}

func TestCheckpointAndRestore(t *testing.T) {
	r, k := running(t, Scenario{})
	image := filepath.Join(t.TempDir(), "image")
	opts, err := anypb.New(&options.CheckpointOptions{Exit: true})
	require.NoError(t, err)
	k.must("Checkpoint", &taskapi.CheckpointTaskRequest{ID: r.id, Path: image, Options: opts}, &emptypb.Empty{})
	require.EqualValues(t, 137, k.wait(r.id, ""))
	k.delete(r.id, "")
	require.FileExists(t, filepath.Join(image, "fake.img"))
	resp := &taskapi.CreateTaskResponse{}
	k.must("Create", &taskapi.CreateTaskRequest{ID: r.id, Bundle: r.bundle, Checkpoint: image}, resp)
	require.Zero(t, resp.Pid)
	require.NotZero(t, k.start(r.id, ""))
	require.Equal(t, tasktypes.Status_RUNNING, k.state(r.id, "").Status)
	k.must("Update", &taskapi.UpdateTaskRequest{ID: r.id}, &emptypb.Empty{})
	k.must("ResizePty", &taskapi.ResizePtyRequest{ID: r.id, Width: 80, Height: 24}, &emptypb.Empty{})
	require.JSONEq(t, `{"id":"c1","width":80,"height":24}`, string(r.shim.Find(KindRPC, "ResizePty")[0].Request))
	k.finish(r)
}

func TestStdio(t *testing.T) {
	r := newRig(t, Scenario{})
	r.config(nil, "cat")
	stdin, stdout := filepath.Join(r.bundle, "in"), filepath.Join(r.bundle, "out")
	require.NoError(t, unix.Mkfifo(stdin, 0o600))
	require.NoError(t, unix.Mkfifo(stdout, 0o600))
	k := r.dial(r.start(r.bootstrapStdin()))
	in, err := os.OpenFile(stdin, os.O_RDWR, 0)
	require.NoError(t, err)
	defer in.Close()
	out, err := os.OpenFile(stdout, os.O_RDONLY|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	defer out.Close()
	k.must("Create", &taskapi.CreateTaskRequest{ID: r.id, Bundle: r.bundle, Stdin: stdin, Stdout: stdout},
		&taskapi.CreateTaskResponse{})
	k.start(r.id, "")
	_, err = in.WriteString("hello")
	require.NoError(t, err)
	buf := make([]byte, 5)
	_, err = io.ReadFull(out, buf)
	require.NoError(t, err)
	require.Equal(t, "hello", string(buf))
	k.must("CloseIO", &taskapi.CloseIORequest{ID: r.id, Stdin: true}, &emptypb.Empty{})
	require.Zero(t, k.wait(r.id, ""))
	rest, err := io.ReadAll(out)
	require.NoError(t, err)
	require.Empty(t, rest)
	k.delete(r.id, "")
	k.shutdown(r.id)
}

func TestLog(t *testing.T) {
	r := newRig(t, Scenario{Log: []string{`level=info msg="up"`}, LogFlood: 100000})
	path := filepath.Join(r.bundle, "log")
	require.NoError(t, unix.Mkfifo(path, 0o700))
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	defer f.Close()
	k := r.dial(r.start(r.bootstrapStdin()))
	want := "level=info msg=\"up\"\nflood flood"
	buf := make([]byte, len(want))
	_, err = io.ReadFull(f, buf)
	require.NoError(t, err)
	require.Equal(t, want, string(buf))
	n, err := io.CopyN(io.Discard, f, int64(100000-len("flood flood")))
	require.NoError(t, err)
	require.EqualValues(t, 100000-len("flood flood"), n)
	k.shutdown(r.id)
}

// A container that is a program of its own begins at Create and ends like any other.
func TestProgram(t *testing.T) {
	r := newRig(t, Scenario{Program: []string{"/bin/sleep", "1000"}})
	k := r.dial(r.start(r.bootstrapStdin()))
	pid := k.create(r)
	require.Equal(t, tasktypes.Status_CREATED, k.state(r.id, "").Status)
	k.start(r.id, "")
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(int(pid)), "comm"))
	require.NoError(t, err)
	require.Equal(t, "sleep\n", string(name))
	k.exec(r.id, "e1", "exit", "5")
	k.start(r.id, "e1")
	require.EqualValues(t, 5, k.wait(r.id, "e1"), "an exec is a guest")
	k.delete(r.id, "e1")
	k.kill(r.id, 9)
	require.EqualValues(t, 137, k.wait(r.id, ""))
	k.delete(r.id, "")
	k.shutdown(r.id)
}
