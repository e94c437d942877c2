// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	cgroupstats "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// processes are the init and then the execs.
func (c *container) processes() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []*process{c.init}
	for _, p := range c.execs {
		all = append(all, p)
	}
	return all
}

// Pids lists what lives.
func (d *daemon) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := d.container(r.ID)
	if err != nil {
		return nil, err
	}
	resp := &taskapi.PidsResponse{}
	for _, p := range c.processes() {
		st, pid, _, _ := p.snapshot()
		if pid == 0 || st == tasktypes.Status_STOPPED {
			continue
		}
		info := &tasktypes.ProcessInfo{Pid: pid}
		if p.id != "" {
			info.Info = typed(&options.ProcessDetails{ExecID: p.id})
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

// typed packs a message under the URL that containerd gives it, which is its bare name.
func typed(m proto.Message) *anypb.Any {
	value, _ := proto.Marshal(m)
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}
}

// Pause stops the init.
func (d *daemon) Pause(_ context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return d.freeze(r.ID, syscall.SIGSTOP, tasktypes.Status_PAUSED, "/tasks/paused",
		&events.TaskPaused{ContainerID: r.ID})
}

// Resume continues the init.
func (d *daemon) Resume(_ context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return d.freeze(r.ID, syscall.SIGCONT, tasktypes.Status_RUNNING, "/tasks/resumed",
		&events.TaskResumed{ContainerID: r.ID})
}

func (d *daemon) freeze(id string, sig syscall.Signal, to tasktypes.Status, topic string,
	event proto.Message) (*emptypb.Empty, error) {
	c, err := d.container(id)
	if err != nil {
		return nil, err
	}
	if err := c.init.signal(sig); err != nil {
		return nil, err
	}
	c.init.mu.Lock()
	if c.init.status != tasktypes.Status_STOPPED {
		c.init.status = to
	}
	c.init.mu.Unlock()
	d.events.publish(topic, event)
	return &emptypb.Empty{}, nil
}

// Checkpoint leaves a file in the image directory, and ends the task if the options say so.
func (d *daemon) Checkpoint(_ context.Context, r *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	c, err := d.container(r.ID)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.Path, 0o700); err != nil {
		return nil, errors.Wrap(err, "making the image directory")
	}
	if err := os.WriteFile(filepath.Join(r.Path, "fake.img"), []byte(c.id), 0o600); err != nil {
		return nil, errors.Wrap(err, "writing the image")
	}
	opts := &options.CheckpointOptions{}
	if proto.Unmarshal(r.GetOptions().GetValue(), opts) == nil && opts.Exit {
		_ = c.init.signal(syscall.SIGKILL)
	}
	d.events.publish("/tasks/checkpointed", &events.TaskCheckpointed{ContainerID: c.id, Checkpoint: r.Path})
	return &emptypb.Empty{}, nil
}

// ResizePty only has to find the process: there is no terminal.
func (d *daemon) ResizePty(_ context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	_, _, err := d.find(r.ID, r.ExecID)
	return &emptypb.Empty{}, err
}

// CloseIO ends the process's stdin.
func (d *daemon) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	_, p, err := d.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stdin != nil && r.Stdin {
		_ = p.stdin.Close()
	}
	return &emptypb.Empty{}, nil
}

// Update only has to find the task.
func (d *daemon) Update(_ context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	_, err := d.container(r.ID)
	return &emptypb.Empty{}, err
}

// Stats tells how many processes there are.
func (d *daemon) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	pids, err := d.Pids(ctx, &taskapi.PidsRequest{ID: r.ID})
	if err != nil {
		return nil, err
	}
	return &taskapi.StatsResponse{Stats: typed(&cgroupstats.Metrics{
		Pids: &cgroupstats.PidsStat{Current: uint64(len(pids.Processes))},
	})}, nil
}

// Connect answers for containers that it does not know as well, without their pid.
func (d *daemon) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	resp := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: "fake"}
	if c, err := d.container(r.ID); err == nil {
		_, resp.TaskPid, _, _ = c.init.snapshot()
	}
	return resp, nil
}

// Shutdown ends the daemon unless it has something to serve.
func (d *daemon) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.containers) == 0 && !d.sandbox.running() {
		d.shutdown()
	}
	return &emptypb.Empty{}, nil
}
