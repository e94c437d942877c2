// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"google.golang.org/protobuf/proto"
)

// sandboxService is the one version of the Sandbox API.
const sandboxService = "containerd.runtime.sandbox.v1.Sandbox"

// Sandbox calls the Sandbox API of one shim, over ttrpc or gRPC. Errors are
// classified as those of Task. Immutable and safe for concurrent use.
type Sandbox struct{ conn *Conn }

// Sandbox returns a client of the Sandbox API.
func (c *Conn) Sandbox() *Sandbox { return &Sandbox{conn: c} }

func askSandbox[M proto.Message](ctx context.Context, s *Sandbox, method string, req proto.Message, resp M) (M, error) {
	if err := s.conn.call(ctx, sandboxService, method, req, resp); err != nil {
		var none M
		return none, err
	}
	return resp, nil
}

// Create initializes the sandbox's environment.
func (s *Sandbox) Create(ctx context.Context, req *api.CreateSandboxRequest) error {
	_, err := askSandbox(ctx, s, "CreateSandbox", req, new(api.CreateSandboxResponse))
	return err
}

// Start starts a created sandbox.
func (s *Sandbox) Start(ctx context.Context, req *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	return askSandbox(ctx, s, "StartSandbox", req, new(api.StartSandboxResponse))
}

// Platform tells which platform containers in the sandbox run on.
func (s *Sandbox) Platform(ctx context.Context, req *api.PlatformRequest) (*api.PlatformResponse, error) {
	return askSandbox(ctx, s, "Platform", req, new(api.PlatformResponse))
}

// Stop stops the sandbox. Its deadline begins when the timeout in the request has
// passed, for which the shim may wait.
func (s *Sandbox) Stop(ctx context.Context, req *api.StopSandboxRequest) error {
	grace := time.Duration(req.TimeoutSecs) * time.Second
	return s.conn.callFor(ctx, grace, sandboxService, "StopSandbox", req, new(api.StopSandboxResponse))
}

// Wait blocks until the sandbox has exited.
func (s *Sandbox) Wait(ctx context.Context, req *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	return askSandbox(ctx, s, "WaitSandbox", req, new(api.WaitSandboxResponse))
}

// Status tells the sandbox's state.
func (s *Sandbox) Status(ctx context.Context, req *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	return askSandbox(ctx, s, "SandboxStatus", req, new(api.SandboxStatusResponse))
}

// Shutdown ends the sandbox and the shim.
func (s *Sandbox) Shutdown(ctx context.Context, req *api.ShutdownSandboxRequest) error {
	_, err := askSandbox(ctx, s, "ShutdownSandbox", req, new(api.ShutdownSandboxResponse))
	return err
}

// Metrics returns the sandbox's metrics.
func (s *Sandbox) Metrics(ctx context.Context, req *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	return askSandbox(ctx, s, "SandboxMetrics", req, new(api.SandboxMetricsResponse))
}

// Update changes a part of the sandbox.
func (s *Sandbox) Update(ctx context.Context, req *api.UpdateSandboxRequest) error {
	_, err := askSandbox(ctx, s, "UpdateSandbox", req, new(api.UpdateSandboxResponse))
	return err
}
