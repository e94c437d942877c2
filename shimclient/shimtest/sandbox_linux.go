// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"runtime"
	"syscall"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The states that CRI knows.
const (
	sandboxReady    = "SANDBOX_READY"
	sandboxNotReady = "SANDBOX_NOTREADY"
)

// sandbox is the one sandbox of a daemon; its process is a guest that sleeps.
type sandbox struct {
	id, bundle string
	pause      *process
	createdAt  time.Time
}

func (s *sandbox) running() bool {
	if s == nil {
		return false
	}
	st, pid, _, _ := s.pause.snapshot()
	return pid != 0 && st != tasktypes.Status_STOPPED
}

func (d *daemon) findSandbox(id string) (*sandbox, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sandbox == nil || d.sandbox.id != id {
		return nil, status.Errorf(codes.NotFound, "sandbox %s does not exist", id)
	}
	return d.sandbox, nil
}

// CreateSandbox takes the daemon's only place.
func (d *daemon) CreateSandbox(_ context.Context,
	r *sandboxapi.CreateSandboxRequest) (*sandboxapi.CreateSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sandbox != nil {
		return nil, status.Errorf(codes.AlreadyExists, "sandbox %s exists", d.sandbox.id)
	}
	d.sandbox = &sandbox{
		id: r.SandboxID, bundle: r.BundlePath, createdAt: time.Now(), pause: newProcess("", []string{"sleep"}, stdio{}),
	}
	return &sandboxapi.CreateSandboxResponse{}, nil
}

// StartSandbox starts the sandbox's process.
func (d *daemon) StartSandbox(_ context.Context,
	r *sandboxapi.StartSandboxRequest) (*sandboxapi.StartSandboxResponse, error) {
	s, err := d.findSandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	s.pause.announce.Lock()
	defer s.pause.announce.Unlock()
	if !s.pause.unborn() {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %s was started", s.id)
	}
	err = d.spawn(s.pause, s.id, s.bundle, func(code int, at time.Time) {
		s.pause.announce.Lock()
		defer s.pause.announce.Unlock()
		s.pause.finish(code, at)
		close(s.pause.exited)
	})
	if err != nil {
		return nil, err
	}
	if err := s.pause.run(); err != nil {
		return nil, err
	}
	_, pid, _, _ := s.pause.snapshot()
	if err := writeInitPid(s.bundle, pid); err != nil { // for `delete`
		return nil, err
	}
	return &sandboxapi.StartSandboxResponse{Pid: pid, CreatedAt: timestamppb.New(s.createdAt)}, nil
}

// Platform is the platform of the test.
func (d *daemon) Platform(context.Context, *sandboxapi.PlatformRequest) (*sandboxapi.PlatformResponse, error) {
	return &sandboxapi.PlatformResponse{
		Platform: &types.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH},
	}, nil
}

// StopSandbox ends the sandbox's process, and is content when there is none.
func (d *daemon) StopSandbox(_ context.Context,
	r *sandboxapi.StopSandboxRequest) (*sandboxapi.StopSandboxResponse, error) {
	s, err := d.findSandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	if s.running() {
		_ = s.pause.signal(syscall.SIGKILL)
		<-s.pause.exited
	}
	return &sandboxapi.StopSandboxResponse{}, nil
}

// WaitSandbox returns when the sandbox's process has ended.
func (d *daemon) WaitSandbox(ctx context.Context,
	r *sandboxapi.WaitSandboxRequest) (*sandboxapi.WaitSandboxResponse, error) {
	s, err := d.findSandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	select {
	case <-s.pause.exited:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	_, _, code, at := s.pause.snapshot()
	return &sandboxapi.WaitSandboxResponse{ExitStatus: code, ExitedAt: stamp(at)}, nil
}

// SandboxStatus tells whether the sandbox's process lives.
func (d *daemon) SandboxStatus(_ context.Context,
	r *sandboxapi.SandboxStatusRequest) (*sandboxapi.SandboxStatusResponse, error) {
	s, err := d.findSandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	_, pid, _, at := s.pause.snapshot()
	resp := &sandboxapi.SandboxStatusResponse{
		SandboxID: s.id, Pid: pid, State: sandboxNotReady, CreatedAt: timestamppb.New(s.createdAt), ExitedAt: stamp(at),
	}
	if s.running() {
		resp.State = sandboxReady
	}
	if r.Verbose {
		resp.Info = map[string]string{"bundle": s.bundle}
	}
	return resp, nil
}

// PingSandbox only has to find the sandbox.
func (d *daemon) PingSandbox(_ context.Context, r *sandboxapi.PingRequest) (*sandboxapi.PingResponse, error) {
	_, err := d.findSandbox(r.SandboxID)
	return &sandboxapi.PingResponse{}, err
}

// ShutdownSandbox ends the sandbox and, if it serves no task, the daemon.
func (d *daemon) ShutdownSandbox(ctx context.Context,
	r *sandboxapi.ShutdownSandboxRequest) (*sandboxapi.ShutdownSandboxResponse, error) {
	if _, err := d.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: r.SandboxID}); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sandbox = nil
	if len(d.containers) == 0 {
		d.shutdown()
	}
	return &sandboxapi.ShutdownSandboxResponse{}, nil
}

// SandboxMetrics are of the sandbox alone.
func (d *daemon) SandboxMetrics(_ context.Context,
	r *sandboxapi.SandboxMetricsRequest) (*sandboxapi.SandboxMetricsResponse, error) {
	if _, err := d.findSandbox(r.SandboxID); err != nil {
		return nil, err
	}
	return &sandboxapi.SandboxMetricsResponse{
		Metrics: &types.Metric{ID: r.SandboxID, Timestamp: timestamppb.Now()},
	}, nil
}

// UpdateSandbox only has to find the sandbox.
func (d *daemon) UpdateSandbox(_ context.Context,
	r *sandboxapi.UpdateSandboxRequest) (*sandboxapi.UpdateSandboxResponse, error) {
	_, err := d.findSandbox(r.SandboxID)
	return &sandboxapi.UpdateSandboxResponse{}, err
}
