// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// failStart runs `start`, which has to fail, and returns its stderr.
func (r *rig) failStart(stdin []byte) string {
	r.t.Helper()
	out, err := r.command(stdin, "start").Output()
	require.Error(r.t, err)
	require.Empty(r.t, out)
	return r.stderr.String()
}

func TestRefusalsByGeneration(t *testing.T) {
	cases := map[string]struct {
		generation Generation
		stdin      func(*rig) []byte
		text       string
	}{
		"bootstrap, nothing": {Bootstrap, func(*rig) []byte { return nil }, "deprecated API"},
		"bootstrap, an Any": {Bootstrap, func(r *rig) []byte { return r.legacyStdin(&options.Options{}) },
			"deprecated API"},
		"bootstrap, other's id": {Bootstrap,
			func(r *rig) []byte { r.id = "x"; b := r.bootstrapStdin(); r.id = "c1"; return b }, "deprecated API"},
		"legacy, bootstrap": {Legacy, func(r *rig) []byte { return r.bootstrapStdin() },
			"type with url c1: not found"},
		"legacy, garbage": {Legacy, func(*rig) []byte { return []byte("\xff\xff") }, "proto:"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Scenario{Generation: c.generation})
			require.Contains(t, r.failStart(c.stdin(r)), c.text)
			require.Empty(t, r.shim.Procs())
			require.Empty(t, r.shim.Sockets())
		})
	}
}

// What options a shim gets, and what it makes of them, depends on both sides' generation.
func TestOptionsAreTraced(t *testing.T) {
	cgroup := &options.Options{ShimCgroup: "/cg"}
	cases := map[string]struct {
		generation Generation
		stdin      func(*rig) []byte
		kind       string
		applied    int
	}{
		"bootstrap":             {Bootstrap, func(r *rig) []byte { return r.bootstrapStdin(cgroup) }, "bootstrap", 1},
		"legacy":                {Legacy, func(r *rig) []byte { return r.legacyStdin(cgroup) }, "legacy", 1},
		"dropping, an Any":      {Dropping, func(r *rig) []byte { return r.legacyStdin(cgroup) }, "legacy", 1},
		"dropping, a bootstrap": {Dropping, func(r *rig) []byte { return r.bootstrapStdin(cgroup) }, "bootstrap", 0},
		"lenient":               {Lenient, func(r *rig) []byte { return r.bootstrapStdin(cgroup) }, "bootstrap", 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Scenario{Generation: c.generation, TraceEnv: []string{"MINE"}})
			t.Setenv("MINE", "yes")
			k := r.dial(r.start(c.stdin(r)))
			e := r.shim.Find(KindExec, "start")[0]
			require.Equal(t, c.kind, e.Stdin)
			require.Len(t, e.Options, 1)
			require.JSONEq(t, `{"shimCgroup":"/cg"}`, string(e.Options[0].Decoded))
			require.Len(t, e.Applied, c.applied)
			require.Equal(t, r.bundle, e.Cwd)
			require.Equal(t, r.id, e.ID)
			require.Len(t, e.StdinHash, 64)
			require.Contains(t, e.Env, "MINE=yes")
			require.Contains(t, e.Env, "TTRPC_ADDRESS="+r.events.Address())
			k.shutdown(r.id)
			r.shim.AwaitNoProcs()
			require.Len(t, r.shim.Find(KindExit, ""), 1)
		})
	}
}

func TestReplies(t *testing.T) {
	run := func(t *testing.T, rep Reply) ([]byte, *rig) {
		r := newRig(t, Scenario{Reply: rep})
		out, err := r.command(r.bootstrapStdin(), "start").Output()
		require.NoError(t, err, r.stderr.String())
		r.shim.KillAll()
		r.shim.AllowLeftovers()
		return out, r
	}
	t.Run("protobuf", func(t *testing.T) {
		out, r := run(t, Reply{Metadata: map[string]string{"a": "b"}, MountTypes: []string{"erofs"}})
		res := &bootapi.BootstrapResult{}
		require.NoError(t, proto.Unmarshal(out, res))
		require.Equal(t, "unix://"+r.shim.Sockets()[0], res.Address)
		require.Equal(t, "b", res.Metadata["a"])
		caps := &types.MountCapabilities{}
		found, err := res.FindExtension(caps)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, []string{"erofs"}, caps.Types)
	})
	t.Run("JSON with lies", func(t *testing.T) {
		out, _ := run(t, Reply{Format: JSON, Version: 4, Protocol: "carrier-pigeon", Address: "x://y"})
		require.JSONEq(t, `{"version":4,"address":"x://y","protocol":"carrier-pigeon"}`, string(out))
	})
	t.Run("with fields missing", func(t *testing.T) {
		out, _ := run(t, Reply{Format: JSON, Omit: []string{"address", "version", "protocol"}})
		require.JSONEq(t, `{}`, string(out))
	})
	t.Run("address", func(t *testing.T) {
		out, r := run(t, Reply{Format: Address})
		require.Equal(t, "unix://"+r.shim.Sockets()[0], string(out))
	})
	t.Run("empty", func(t *testing.T) {
		out, _ := run(t, Reply{Format: Empty})
		require.Empty(t, out)
	})
	t.Run("huge", func(t *testing.T) {
		out, _ := run(t, Reply{Format: Huge})
		require.Len(t, out, 16<<20)
	})
	t.Run("raw", func(t *testing.T) {
		out, _ := run(t, Reply{Format: Raw, Raw: []byte("as it is")})
		require.Equal(t, "as it is", string(out))
	})
	t.Run("garbage", func(t *testing.T) {
		out, _ := run(t, Reply{Format: Garbage})
		require.Error(t, proto.Unmarshal(out, &bootapi.BootstrapResult{}))
		require.Error(t, json.Unmarshal(out, &bootapi.BootstrapResult{}))
	})
}

func TestFailingStart(t *testing.T) {
	for _, stage := range []Stage{AtEntry, BeforeFork, AfterFork} {
		t.Run(string(stage), func(t *testing.T) {
			r := newRig(t, Scenario{Start: StartFaults{FailAt: stage, FailText: "no luck", Stderr: "noise\n",
				Times: 1}})
			require.Contains(t, r.failStart(r.bootstrapStdin()), "noise\nio.containerd.fake.v1: no luck")
			require.Empty(t, r.shim.Procs())
			require.Empty(t, r.shim.Sockets())
			r.dial(r.start(r.bootstrapStdin())).shutdown(r.id)
		})
	}
	t.Run("leaving the daemon", func(t *testing.T) {
		r := newRig(t, Scenario{Start: StartFaults{FailAt: AfterFork, LeaveDaemon: true}})
		r.failStart(r.bootstrapStdin())
		require.NoError(t, r.shim.Daemon(r.id).Kill())
		require.Len(t, r.shim.Sockets(), 1)
		r.shim.AllowLeftovers()
	})
	t.Run("leaking on refusal", func(t *testing.T) {
		r := newRig(t, Scenario{Generation: Legacy, Start: StartFaults{LeakOnRefusal: true}})
		require.Contains(t, r.failStart(r.bootstrapStdin()), "UnexpectedEof")
		require.NoError(t, r.shim.Daemon(r.id).Kill())
		r.shim.AllowLeftovers()
	})
	t.Run("only with bootstrap", func(t *testing.T) {
		r := newRig(t, Scenario{Generation: Lenient, Start: StartFaults{FailAt: BeforeFork, Only: "bootstrap"}})
		r.failStart(r.bootstrapStdin())
		r.dial(r.start(nil)).shutdown(r.id)
	})
	for _, stage := range []Stage{AtEntry, BeforeFork, AfterFork, AfterReply} {
		t.Run("dying "+string(stage), func(t *testing.T) {
			r := newRig(t, Scenario{Start: StartFaults{DieAt: stage}})
			out, err := r.command(r.bootstrapStdin(), "start").Output()
			require.ErrorContains(t, err, "signal: killed")
			require.Equal(t, stage == AfterReply, len(out) > 0)
			require.Len(t, r.shim.Procs(RoleDaemon), map[Stage]int{AfterFork: 1, AfterReply: 1}[stage])
			r.shim.KillAll()
			r.shim.AllowLeftovers()
		})
	}
}

func TestHangingStart(t *testing.T) {
	for _, stage := range []Stage{AtEntry, BeforeFork, AfterFork, AfterReply} {
		t.Run(string(stage), func(t *testing.T) {
			r := newRig(t, Scenario{Start: StartFaults{HangAt: stage}})
			cmd := r.command(r.bootstrapStdin(), "start")
			var out bytes.Buffer
			cmd.Stdout = &out
			require.NoError(t, cmd.Start())
			forked := stage == AfterFork || stage == AfterReply
			r.shim.Await(KindExec, "start", 1)
			if forked {
				r.shim.Await(KindExec, "daemon", 1)
			}
			require.Len(t, r.shim.Procs(RoleStart), 1)
			require.Equal(t, forked, len(r.shim.Procs(RoleDaemon)) == 1)
			r.shim.Update(func(s *Scenario) { s.Start.HangAt = "" })
			require.NoError(t, cmd.Wait())
			res := &bootapi.BootstrapResult{}
			require.NoError(t, proto.Unmarshal(out.Bytes(), res))
			r.dial(res).shutdown(r.id)
		})
	}
}

func TestInheritedStdout(t *testing.T) {
	r := newRig(t, Scenario{Start: StartFaults{InheritStdout: true}})
	cmd := r.command(r.bootstrapStdin(), "start")
	cmd.Stderr = nil
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	buf := make([]byte, 1<<16)
	n, err := stdout.Read(buf)
	require.NoError(t, err)
	res := &bootapi.BootstrapResult{}
	require.NoError(t, proto.Unmarshal(buf[:n], res))
	r.shim.AwaitNoProcs(RoleStart)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = stdout.Read(buf)
	}()
	k := r.dial(res)
	require.NotEmpty(t, r.shim.Daemon(r.id))
	select {
	case <-ended:
		t.Fatal("stdout ended while the daemon lives")
	default:
	}
	k.shutdown(r.id)
	<-ended
	require.NoError(t, cmd.Wait())
}

func TestGroup(t *testing.T) {
	r := newRig(t, Scenario{})
	r.config(map[string]string{"io.containerd.runc.v2.group": "pod"}, "sleep")
	first := r.start(r.bootstrapStdin())
	r.id = "c2"
	second := r.start(r.bootstrapStdin())
	require.Equal(t, first.Address, second.Address)
	require.Len(t, r.shim.Procs(RoleDaemon), 1)
	r.shim.Update(func(s *Scenario) { s.NoGroup = true })
	require.Contains(t, r.failStart(r.bootstrapStdin()), "in use")
	r.dial(first).shutdown(r.id)
}

// A socket whose shim was killed does not stop the next start, and a debug socket comes with -debug.
func TestSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "sy")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	r := newRig(t, Scenario{})
	r.start(r.bootstrapStdin())
	require.NoError(t, r.shim.Daemon(r.id).Kill())
	require.Len(t, r.shim.Sockets(), 1)
	r.dial(r.start(r.bootstrapStdin())).shutdown(r.id)
	r.shim.AwaitNoProcs()
	require.Empty(t, r.shim.Sockets())

	stdin, err := proto.Marshal(&bootapi.BootstrapParams{InstanceID: r.id, Namespace: testNS, SocketDir: &dir})
	require.NoError(t, err)
	plain := r.command(stdin, "-debug")
	cmd := exec.Command(plain.Path, append(plain.Args[1:], "start")...)
	cmd.Dir, cmd.Env, cmd.Stdin = plain.Dir, plain.Env, plain.Stdin
	out, err := cmd.Output()
	require.NoError(t, err)
	res := &bootapi.BootstrapResult{}
	require.NoError(t, proto.Unmarshal(out, res))
	link, err := os.Readlink(filepath.Join(r.bundle, "s"))
	require.NoError(t, err)
	require.Equal(t, dir, link)
	found, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, found, 2)
	r.dial(res).shutdown(r.id)
	r.shim.AwaitNoProcs()
	found, err = os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, found)
}

func TestAddressFile(t *testing.T) {
	r := newRig(t, Scenario{Generation: Legacy})
	res := r.start(nil)
	data, err := os.ReadFile(filepath.Join(r.bundle, "address"))
	require.NoError(t, err)
	require.Equal(t, res.Address, string(data))
	r.dial(res).shutdown(r.id)
}
