// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// taskServices are the full names of the Task service by version. Its messages
// are the same on the wire in all of them.
var taskServices = map[int]string{
	2: "containerd.task.v2.Task",
	3: "containerd.task.v3.Task",
}

// Task is a client of one version of the Task API. It does not change and is
// safe for concurrent use.
//
// The methods are those of the API. Their errors are of the errdefs classes and
// carry the shim's text unchanged:
//   - ErrConnectionLost (Unavailable): no answer, the connection is gone;
//   - ErrNoAnswer (DeadlineExceeded): the method's own deadline passed;
//   - DeadlineExceeded, Canceled: the caller's context ended;
//   - NotImplemented: the shim lacks the method or this version of the API;
//   - all others: the shim's answer.
type Task struct {
	conn    *Conn
	version int
	service string
}

// Version returns the version of the API that t speaks.
func (t *Task) Version() int { return t.version }

// invoke calls a method that answers with resp.
func invoke[M proto.Message](ctx context.Context, t *Task, method string, req proto.Message, resp M) (M, error) {
	if err := t.conn.call(ctx, t.service, method, req, resp); err != nil {
		var none M
		return none, err
	}
	return resp, nil
}

// invokeEmpty calls a method that answers with nothing.
func (t *Task) invokeEmpty(ctx context.Context, method string, req proto.Message) error {
	return t.conn.call(ctx, t.service, method, req, new(emptypb.Empty))
}

// State calls the method of that name.
func (t *Task) State(ctx context.Context, req *api.StateRequest) (*api.StateResponse, error) {
	return invoke(ctx, t, "State", req, new(api.StateResponse))
}

// Create calls the method of that name.
func (t *Task) Create(ctx context.Context, req *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	return invoke(ctx, t, "Create", req, new(api.CreateTaskResponse))
}

// Start calls the method of that name.
func (t *Task) Start(ctx context.Context, req *api.StartRequest) (*api.StartResponse, error) {
	return invoke(ctx, t, "Start", req, new(api.StartResponse))
}

// Delete calls the method of that name.
func (t *Task) Delete(ctx context.Context, req *api.DeleteRequest) (*api.DeleteResponse, error) {
	return invoke(ctx, t, "Delete", req, new(api.DeleteResponse))
}

// Pids calls the method of that name.
func (t *Task) Pids(ctx context.Context, req *api.PidsRequest) (*api.PidsResponse, error) {
	return invoke(ctx, t, "Pids", req, new(api.PidsResponse))
}

// Pause calls the method of that name.
func (t *Task) Pause(ctx context.Context, req *api.PauseRequest) error {
	return t.invokeEmpty(ctx, "Pause", req)
}

// Resume calls the method of that name.
func (t *Task) Resume(ctx context.Context, req *api.ResumeRequest) error {
	return t.invokeEmpty(ctx, "Resume", req)
}

// Checkpoint calls the method of that name.
func (t *Task) Checkpoint(ctx context.Context, req *api.CheckpointTaskRequest) error {
	return t.invokeEmpty(ctx, "Checkpoint", req)
}

// Kill calls the method of that name.
func (t *Task) Kill(ctx context.Context, req *api.KillRequest) error {
	return t.invokeEmpty(ctx, "Kill", req)
}

// Exec calls the method of that name.
func (t *Task) Exec(ctx context.Context, req *api.ExecProcessRequest) error {
	return t.invokeEmpty(ctx, "Exec", req)
}

// ResizePty calls the method of that name.
func (t *Task) ResizePty(ctx context.Context, req *api.ResizePtyRequest) error {
	return t.invokeEmpty(ctx, "ResizePty", req)
}

// CloseIO calls the method of that name.
func (t *Task) CloseIO(ctx context.Context, req *api.CloseIORequest) error {
	return t.invokeEmpty(ctx, "CloseIO", req)
}

// Update calls the method of that name.
func (t *Task) Update(ctx context.Context, req *api.UpdateTaskRequest) error {
	return t.invokeEmpty(ctx, "Update", req)
}

// Wait calls the method of that name.
func (t *Task) Wait(ctx context.Context, req *api.WaitRequest) (*api.WaitResponse, error) {
	return invoke(ctx, t, "Wait", req, new(api.WaitResponse))
}

// Stats calls the method of that name.
func (t *Task) Stats(ctx context.Context, req *api.StatsRequest) (*api.StatsResponse, error) {
	return invoke(ctx, t, "Stats", req, new(api.StatsResponse))
}

// Connect calls the method of that name.
func (t *Task) Connect(ctx context.Context, req *api.ConnectRequest) (*api.ConnectResponse, error) {
	return invoke(ctx, t, "Connect", req, new(api.ConnectResponse))
}

// Shutdown calls the method of that name.
func (t *Task) Shutdown(ctx context.Context, req *api.ShutdownRequest) error {
	return t.invokeEmpty(ctx, "Shutdown", req)
}
