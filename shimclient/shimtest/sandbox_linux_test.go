// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"runtime"
	"testing"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func (k *task) sandbox(method string, req, resp proto.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return k.call(ctx, "containerd.runtime.sandbox.v1.Sandbox", method, req, resp)
}

func TestSandbox(t *testing.T) {
	for _, transport := range []string{"ttrpc", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			r := newRig(t, Scenario{Transport: transport, Sandbox: true})
			k := r.dial(r.start(r.bootstrapStdin()))
			do := func(method string, req, resp proto.Message) {
				t.Helper()
				require.NoError(t, k.sandbox(method, req, resp), method)
			}
			ping := func() error {
				return k.sandbox("PingSandbox", &sandboxapi.PingRequest{SandboxID: r.id}, &sandboxapi.PingResponse{})
			}
			require.Equal(t, codes.NotFound, status.Code(ping()))
			do("CreateSandbox", &sandboxapi.CreateSandboxRequest{SandboxID: r.id, BundlePath: r.bundle},
				&sandboxapi.CreateSandboxResponse{})
			started := &sandboxapi.StartSandboxResponse{}
			do("StartSandbox", &sandboxapi.StartSandboxRequest{SandboxID: r.id}, started)
			require.NotZero(t, started.Pid)
			require.NoError(t, ping())
			platform := &sandboxapi.PlatformResponse{}
			do("Platform", &sandboxapi.PlatformRequest{SandboxID: r.id}, platform)
			require.Equal(t, runtime.GOOS, platform.Platform.OS)
			st := &sandboxapi.SandboxStatusResponse{}
			do("SandboxStatus", &sandboxapi.SandboxStatusRequest{SandboxID: r.id, Verbose: true}, st)
			require.Equal(t, []string{sandboxReady, r.bundle}, []string{st.State, st.Info["bundle"]})
			require.Equal(t, started.Pid, st.Pid)
			do("SandboxMetrics", &sandboxapi.SandboxMetricsRequest{SandboxID: r.id},
				&sandboxapi.SandboxMetricsResponse{})
			do("UpdateSandbox", &sandboxapi.UpdateSandboxRequest{SandboxID: r.id}, &sandboxapi.UpdateSandboxResponse{})

			k.create(r) // a task beside it
			k.start(r.id, "")
			k.kill(r.id, 9)
			k.wait(r.id, "")
			k.delete(r.id, "")
			k.shutdown(r.id) // does nothing while the sandbox runs
			require.NoError(t, ping())

			waited := make(chan error, 1)
			exit := &sandboxapi.WaitSandboxResponse{}
			go func() { waited <- k.sandbox("WaitSandbox", &sandboxapi.WaitSandboxRequest{SandboxID: r.id}, exit) }()
			r.shim.Await(KindRPC, "WaitSandbox", 1)
			do("StopSandbox", &sandboxapi.StopSandboxRequest{SandboxID: r.id}, &sandboxapi.StopSandboxResponse{})
			require.NoError(t, <-waited)
			require.EqualValues(t, 137, exit.ExitStatus)
			do("SandboxStatus", &sandboxapi.SandboxStatusRequest{SandboxID: r.id}, st)
			require.Equal(t, sandboxNotReady, st.State)
			do("ShutdownSandbox", &sandboxapi.ShutdownSandboxRequest{SandboxID: r.id},
				&sandboxapi.ShutdownSandboxResponse{})
			r.shim.AwaitNoProcs()
		})
	}
}
