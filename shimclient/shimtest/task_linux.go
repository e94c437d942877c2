// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"encoding/json"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/pkg/errors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

var (
	errNoContainer = status.Error(codes.NotFound, "container not created")
	errProcessDone = status.Error(codes.NotFound, "process already finished")
	errNotStarted  = status.Error(codes.FailedPrecondition, "process was not started")
)

func errNoProcess(id string) error {
	return status.Errorf(codes.NotFound, "process %s does not exist", id)
}

func (d *daemon) container(id string) (*container, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.containers[id]; c != nil {
		return c, nil
	}
	return nil, errNoContainer
}

func (d *daemon) find(id, execID string) (*container, *process, error) {
	c, err := d.container(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.process(execID)
	return c, p, err
}

// Create makes the task with its init waiting to be started. One that restores a checkpoint has no pid before Start.
func (d *daemon) Create(_ context.Context, r *taskapi.CreateTaskRequest) (_ *taskapi.CreateTaskResponse, err error) {
	c := &container{
		id: r.ID, bundle: r.Bundle, checkpoint: r.Checkpoint, execs: map[string]*process{},
		init: newProcess("", d.initArgs(r.Bundle), stdioOf(r)),
	}
	if err := d.reserve(c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.forget(c)
		}
	}()
	if c.init.args[0] == "missing" {
		return nil, errors.New(`OCI runtime create failed: exec: "missing": executable file not found in $PATH`)
	}
	c.init.announce.Lock()
	defer c.init.announce.Unlock()
	if c.checkpoint == "" {
		if err := d.spawnInit(c); err != nil {
			return nil, err
		}
	}
	_, pid, _, _ := c.init.snapshot()
	d.events.publish("/tasks/create", &events.TaskCreate{
		ContainerID: r.ID, Bundle: r.Bundle, Rootfs: r.Rootfs, Checkpoint: r.Checkpoint, Pid: pid,
		IO: &events.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	return &taskapi.CreateTaskResponse{Pid: pid}, nil
}

func (d *daemon) reserve(c *container) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.containers[c.id] != nil {
		return status.Errorf(codes.AlreadyExists, "container %s exists", c.id)
	}
	d.containers[c.id] = c
	return nil
}

func (d *daemon) forget(c *container) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.containers, c.id)
}

func (d *daemon) spawnInit(c *container) error {
	if err := d.spawn(c.init, c.id, c.bundle, func(code int, at time.Time) { d.initExited(c, code, at) }); err != nil {
		return err
	}
	_, pid, _, _ := c.init.snapshot()
	return writeInitPid(c.bundle, pid)
}

// initExited publishes the exit of the init as the last of its container's.
func (d *daemon) initExited(c *container, code int, at time.Time) {
	c.killExecs()
	c.init.announce.Lock()
	defer c.init.announce.Unlock()
	c.init.finish(code, at)
	_, pid, _, _ := c.init.snapshot()
	d.writeExit(c, int(pid), code, at)
	d.publishExit(c.id, c.id, pid, code, at)
	close(c.init.exited)
}

func (d *daemon) execExited(c *container, p *process, code int, at time.Time) {
	p.announce.Lock()
	defer p.announce.Unlock()
	p.finish(code, at)
	_, pid, _, _ := p.snapshot()
	d.publishExit(c.id, p.id, pid, code, at)
	close(p.exited)
}

func (d *daemon) publishExit(id, process string, pid uint32, code int, at time.Time) {
	d.events.publish("/tasks/exit", &events.TaskExit{
		ContainerID: id, ID: process, Pid: pid, ExitStatus: uint32(code), ExitedAt: timestamppb.New(at),
	})
}

// Start lets the init or an exec run.
func (d *daemon) Start(_ context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	c, p, err := d.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	p.announce.Lock()
	defer p.announce.Unlock()
	if r.ExecID != "" {
		if err := d.spawnExec(c, p); err != nil {
			return nil, err
		}
	} else if c.checkpoint != "" && p.unborn() {
		if err := d.spawnInit(c); err != nil {
			return nil, err
		}
	}
	if err := p.run(); err != nil {
		return nil, err
	}
	_, pid, _, _ := p.snapshot()
	if r.ExecID == "" {
		d.events.publish("/tasks/start", &events.TaskStart{ContainerID: c.id, Pid: pid})
	} else {
		d.events.publish("/tasks/exec-started", &events.TaskExecStarted{ContainerID: c.id, ExecID: p.id, Pid: pid})
	}
	return &taskapi.StartResponse{Pid: pid}, nil
}

func (p *process) unborn() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd == nil
}

// spawnExec makes an exec's child unless the container is ending.
func (d *daemon) spawnExec(c *container, p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return status.Errorf(codes.FailedPrecondition, "the init process of container %s is not running", c.id)
	}
	if !p.unborn() {
		return errors.New("cannot start a process twice")
	}
	return d.spawn(p, c.id, c.bundle, func(code int, at time.Time) { d.execExited(c, p, code, at) })
}

// Exec adds a process that Start starts.
func (d *daemon) Exec(_ context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := d.container(r.ID)
	if err != nil {
		return nil, err
	}
	var spec struct {
		Args []string `json:"args"`
	}
	if err := json.Unmarshal(r.GetSpec().GetValue(), &spec); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "decoding the exec's spec: %v", err)
	}
	p := newProcess(r.ExecID, spec.Args, stdio{r.Stdin, r.Stdout, r.Stderr, r.Terminal})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[r.ExecID] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "id %s", r.ExecID)
	}
	c.execs[r.ExecID] = p
	d.events.publish("/tasks/exec-added", &events.TaskExecAdded{ContainerID: c.id, ExecID: r.ExecID})
	return &emptypb.Empty{}, nil
}

// Delete removes an exec, or the task, once it has ended.
func (d *daemon) Delete(_ context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	c, p, err := d.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	switch st, pid, _, _ := p.snapshot(); {
	case st == tasktypes.Status_RUNNING || st == tasktypes.Status_PAUSED:
		return nil, errors.New("cannot delete a running process")
	case st == tasktypes.Status_CREATED && pid != 0 && r.ExecID == "" && d.load().EarlyDelete:
		defer func() { _ = p.signal(syscall.SIGKILL) }()
	case st == tasktypes.Status_CREATED && pid != 0:
		_ = p.signal(syscall.SIGKILL)
		<-p.exited
	case st == tasktypes.Status_STOPPED:
		<-p.exited
	}
	_, pid, code, at := p.snapshot()
	if r.ExecID == "" {
		d.forget(c)
		d.events.publish("/tasks/delete", &events.TaskDelete{
			ContainerID: c.id, Pid: pid, ExitStatus: code, ExitedAt: stamp(at),
		})
	} else {
		c.mu.Lock()
		delete(c.execs, r.ExecID)
		c.mu.Unlock()
	}
	return &taskapi.DeleteResponse{Pid: pid, ExitStatus: code, ExitedAt: stamp(at)}, nil
}

// stamp leaves out the zero time.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// State tells what is known of a process.
func (d *daemon) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	c, p, err := d.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	st, pid, code, at := p.snapshot()
	id := c.id
	if r.ExecID != "" {
		id = r.ExecID
	}
	return &taskapi.StateResponse{
		ID: id, Bundle: c.bundle, Pid: pid, Status: st, Stdin: p.io.stdin, Stdout: p.io.stdout, Stderr: p.io.stderr,
		Terminal: p.io.terminal, ExitStatus: code, ExitedAt: stamp(at), ExecID: r.ExecID,
	}, nil
}

// Wait returns when the exit is published.
func (d *daemon) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	_, p, err := d.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	_, _, code, at := p.snapshot()
	return &taskapi.WaitResponse{ExitStatus: code, ExitedAt: stamp(at)}, nil
}

// Kill signals a process; with All also the container's execs.
func (d *daemon) Kill(_ context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	c, p, err := d.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.All && r.ExecID == "" {
		for _, e := range c.processes()[1:] {
			_ = e.signal(syscall.Signal(r.Signal))
		}
	}
	if err := p.signal(syscall.Signal(r.Signal)); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
