// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

func (r *rig) delete() *taskapi.DeleteResponse {
	r.t.Helper()
	out, err := r.command(nil, "delete").Output()
	require.NoError(r.t, err, r.stderr.String())
	resp := &taskapi.DeleteResponse{}
	require.NoError(r.t, proto.Unmarshal(out, resp))
	return resp
}

// A daemon that was killed leaves its container running; `delete` ends it, with its execs.
func TestDeleteAfterDeath(t *testing.T) {
	r, k := running(t, Scenario{})
	pid := k.state(r.id, "").Pid
	k.exec(r.id, "e1", "sleep")
	k.start(r.id, "e1")
	require.NoError(t, r.shim.Daemon(r.id).Kill())
	require.Len(t, r.shim.Procs(RoleGuest), 2)
	resp := r.delete()
	require.Equal(t, []uint32{pid, 137}, []uint32{resp.Pid, resp.ExitStatus})
	require.Empty(t, r.shim.Procs())
	e := r.shim.Find(KindExec, "delete")
	require.Len(t, e, 1)
	require.Equal(t, r.bundle, e[0].Cwd)
	require.Contains(t, e[0].Env, "NAMESPACE="+testNS)
	require.Equal(t, "delete", e[0].Argv[len(e[0].Argv)-1])
	r.shim.AllowLeftovers() // the socket
}

// What exit.json says goes before what `delete` would guess; older generations have none.
func TestDeleteReadsTheExit(t *testing.T) {
	for generation, want := range map[Generation]uint32{Bootstrap: 7, Dropping: 137} {
		r := newRig(t, Scenario{Generation: generation})
		r.config(nil, "exit", "7")
		k := r.dial(r.start(r.bootstrapStdin()))
		k.create(r)
		k.start(r.id, "")
		require.EqualValues(t, 7, k.wait(r.id, ""))
		require.NoError(t, r.shim.Daemon(r.id).Kill())
		require.Equal(t, want, r.delete().ExitStatus)
		r.shim.AllowLeftovers()
	}
}

func TestDeleteFaults(t *testing.T) {
	r := newRig(t, Scenario{Delete: DeleteFaults{Fail: 2, FailText: "not yet", Stderr: "warning\n"}})
	for range 2 {
		_, err := r.command(nil, "delete").Output()
		require.Error(t, err)
		require.Equal(t, "warning\nio.containerd.fake.v1: not yet", r.stderr.String())
	}
	require.EqualValues(t, 137, r.delete().ExitStatus)
	r.shim.Update(func(s *Scenario) { s.Delete = DeleteFaults{Garbage: true} })
	out, err := r.command(nil, "delete").Output()
	require.NoError(t, err)
	require.Error(t, proto.Unmarshal(out, &taskapi.DeleteResponse{}))

	r.shim.Update(func(s *Scenario) { s.Delete = DeleteFaults{Hang: true} })
	cmd := r.command(nil, "delete")
	require.NoError(t, cmd.Start())
	r.shim.Await(KindExec, "delete", 5)
	require.Len(t, r.shim.Procs(RoleDelete), 1)
	r.shim.Update(func(s *Scenario) { s.Delete = DeleteFaults{} })
	require.NoError(t, cmd.Wait())
}

func TestInfo(t *testing.T) {
	yes := true
	r := newRig(t, Scenario{Info: InfoAnswer{IDMap: &yes,
		Annotations: map[string]string{"containerd.io/runtime-allow-mounts": "erofs"}}})
	run := func(stdin []byte) (*types.RuntimeInfo, error) {
		cmd := exec.Command(r.shim.Path, "-info")
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.Output()
		info := &types.RuntimeInfo{}
		require.NoError(t, proto.Unmarshal(out, info))
		return info, err
	}
	info, err := run(r.legacyStdin(&options.Options{BinaryName: "crun"}))
	require.NoError(t, err)
	require.Equal(t, "erofs", info.Annotations["containerd.io/runtime-allow-mounts"])
	require.Contains(t, string(info.Features.Value), `"idmap":{"enabled":true}`)
	require.JSONEq(t, `{"binaryName":"crun"}`, string(r.shim.Find(KindExec, "info")[0].Options[0].Decoded))
	r.shim.Update(func(s *Scenario) { s.Info = InfoAnswer{NoFeatures: true} })
	info, err = run(nil)
	require.NoError(t, err)
	require.Nil(t, info.Features)
	r.shim.Update(func(s *Scenario) { s.Info = InfoAnswer{Fail: "no"} })
	_, err = run(nil)
	require.Error(t, err)
	require.Equal(t, 3, r.shim.Count(KindExec, "info"))
	out, err := exec.Command(r.shim.Path, "-v").Output()
	require.NoError(t, err)
	require.Contains(t, string(out), filepath.Base(r.shim.Path))
}
