// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

const testNS = "ns"

// rig is a fake shim with a bundle and an event server.
type rig struct {
	t      *testing.T
	shim   *Shim
	events *Events
	bundle string
	id     string
	stderr bytes.Buffer
}

func newRig(t *testing.T, s Scenario, opts ...InstallOption) *rig {
	t.Helper()
	CheckLeaks(t)
	r := &rig{t: t, events: NewEvents(t), shim: Install(t, s, opts...), id: "c1"}
	r.bundle = filepath.Join(t.TempDir(), r.id)
	require.NoError(t, os.Mkdir(r.bundle, 0o700))
	return r
}

func (r *rig) config(annotations map[string]string, args ...string) {
	spec := map[string]any{"annotations": annotations}
	if len(args) > 0 {
		spec["process"] = map[string]any{"args": args}
	}
	data, err := json.Marshal(spec)
	require.NoError(r.t, err)
	require.NoError(r.t, os.WriteFile(filepath.Join(r.bundle, "config.json"), data, 0o600))
}

func (r *rig) command(stdin []byte, action string) *exec.Cmd {
	cmd := exec.Command(r.shim.Path, "-namespace", testNS, "-address", "/run/none.sock", "-publish-binary", "/bin/none",
		"-id", r.id, action)
	cmd.Dir = r.bundle
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+r.events.Address(), "NAMESPACE="+testNS)
	cmd.Stdin = bytes.NewReader(stdin)
	r.stderr.Reset()
	cmd.Stderr = &r.stderr
	return cmd
}

func (r *rig) bootstrapStdin(options ...proto.Message) []byte {
	p := &bootapi.BootstrapParams{InstanceID: r.id, Namespace: testNS}
	for _, o := range options {
		require.NoError(r.t, p.AddExtension(o))
	}
	data, err := proto.Marshal(p)
	require.NoError(r.t, err)
	return data
}

func (r *rig) legacyStdin(option proto.Message) []byte {
	a, err := anypb.New(option)
	require.NoError(r.t, err)
	data, err := proto.Marshal(a)
	require.NoError(r.t, err)
	return data
}

// start runs `start`, which has to succeed, and returns the address of its reply whatever the format.
func (r *rig) start(stdin []byte) *bootapi.BootstrapResult {
	r.t.Helper()
	out, err := r.command(stdin, "start").Output()
	require.NoError(r.t, err, r.stderr.String())
	res := &bootapi.BootstrapResult{}
	switch {
	case bytes.HasPrefix(out, []byte("{")):
		require.NoError(r.t, json.Unmarshal(out, res))
	case bytes.HasPrefix(out, []byte("unix://")), bytes.HasPrefix(out, []byte("/")):
		res.Version, res.Protocol, res.Address = 2, "ttrpc", string(out)
	default:
		require.NoError(r.t, proto.Unmarshal(out, res))
	}
	return res
}

// caller makes one RPC of the Task service.
type caller interface {
	call(ctx context.Context, service, method string, req, resp proto.Message) error
	close()
}

type ttrpcCaller struct{ c *ttrpc.Client }

func (c ttrpcCaller) call(ctx context.Context, service, method string, req, resp proto.Message) error {
	return c.c.Call(ctx, service, method, req, resp)
}
func (c ttrpcCaller) close() { _ = c.c.Close() }

type grpcCaller struct{ c *grpc.ClientConn }

func (c grpcCaller) call(ctx context.Context, service, method string, req, resp proto.Message) error {
	return c.c.Invoke(ctx, "/"+service+"/"+method, req, resp)
}
func (c grpcCaller) close() { _ = c.c.Close() }

// task is a client of the Task service.
type task struct {
	caller
	t       *testing.T
	version int
}

func (r *rig) dial(res *bootapi.BootstrapResult) *task {
	r.t.Helper()
	k := &task{t: r.t, version: int(res.Version)}
	if res.Protocol == "grpc" {
		conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(res.Address, "unix://"),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(r.t, err)
		k.caller = grpcCaller{conn}
	} else {
		k.caller = ttrpcCaller{ttrpc.NewClient(r.connect(res.Address))}
	}
	r.t.Cleanup(k.close)
	return k
}

func (r *rig) connect(address string) net.Conn {
	path, ok := strings.CutPrefix(address, "unix://")
	hv, hybrid := strings.CutPrefix(address, "hvsock://")
	switch {
	case hybrid:
		path, _, _ = strings.Cut(hv, ":")
	case !ok:
		path = "\x00" + address
	}
	conn, err := net.Dial("unix", path)
	require.NoError(r.t, err)
	if hybrid {
		_, err := fmt.Fprintln(conn, "CONNECT 1024")
		require.NoError(r.t, err)
		ok := make([]byte, len("OK 1024\n"))
		_, err = conn.Read(ok)
		require.NoError(r.t, err)
		require.Equal(r.t, "OK 1024\n", string(ok))
	}
	return conn
}

func (k *task) try(method string, req, resp proto.Message) error {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return k.call(ctx, fmt.Sprintf("containerd.task.v%d.Task", k.version), method, req, resp)
}

func (k *task) must(method string, req, resp proto.Message) {
	k.t.Helper()
	require.NoError(k.t, k.try(method, req, resp), method)
}

func (k *task) create(r *rig) uint32 {
	k.t.Helper()
	resp := &taskapi.CreateTaskResponse{}
	k.must("Create", &taskapi.CreateTaskRequest{ID: r.id, Bundle: r.bundle}, resp)
	return resp.Pid
}

func (k *task) start(id, exec string) uint32 {
	k.t.Helper()
	resp := &taskapi.StartResponse{}
	k.must("Start", &taskapi.StartRequest{ID: id, ExecID: exec}, resp)
	return resp.Pid
}

func (k *task) wait(id, exec string) uint32 {
	k.t.Helper()
	resp := &taskapi.WaitResponse{}
	k.must("Wait", &taskapi.WaitRequest{ID: id, ExecID: exec}, resp)
	return resp.ExitStatus
}

func (k *task) kill(id string, sig uint32) {
	k.t.Helper()
	k.must("Kill", &taskapi.KillRequest{ID: id, Signal: sig}, &emptypb.Empty{})
}

func (k *task) delete(id, exec string) *taskapi.DeleteResponse {
	k.t.Helper()
	resp := &taskapi.DeleteResponse{}
	k.must("Delete", &taskapi.DeleteRequest{ID: id, ExecID: exec}, resp)
	return resp
}

func (k *task) state(id, exec string) *taskapi.StateResponse {
	k.t.Helper()
	resp := &taskapi.StateResponse{}
	k.must("State", &taskapi.StateRequest{ID: id, ExecID: exec}, resp)
	return resp
}

func (k *task) shutdown(id string) {
	k.t.Helper()
	k.must("Shutdown", &taskapi.ShutdownRequest{ID: id}, &emptypb.Empty{})
}

// finish ends a running task and its shim the orderly way.
func (k *task) finish(r *rig) {
	k.t.Helper()
	k.kill(r.id, 9)
	require.EqualValues(k.t, 137, k.wait(r.id, ""))
	k.delete(r.id, "")
	k.shutdown(r.id)
	r.shim.AwaitNoProcs()
}
