// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"path/filepath"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func TestSandbox(t *testing.T) {
	for _, transport := range []string{"ttrpc", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{Sandbox: true, Transport: transport})
			y.unknownBox("s1")
			i := y.box("s1")
			require.Equal(t, "s1", i.SandboxID)
			require.NotZero(t, i.Pid)
			require.NotEmpty(t, i.Address)
			require.Equal(t, uint32(3), i.Version)
			require.False(t, i.CreatedAt.IsZero())
			info, err := os.Stat(y.path("sstate"))
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

			s, err := y.boxes.Status(y.ctx, "s1", true)
			require.NoError(t, err)
			require.Equal(t, "SANDBOX_READY", s.State)
			require.Equal(t, i.Pid, s.Pid)
			require.Equal(t, i.Address, s.Address)
			require.Equal(t, i.Version, s.Version)
			require.Equal(t, y.path("sstate", testNamespace, "s1"), s.Info["bundle"])
			p, err := y.boxes.Platform(y.ctx, "s1")
			require.NoError(t, err)
			require.Equal(t, goruntime.GOOS, p.OS)
			require.Equal(t, goruntime.GOARCH, p.Architecture)
			m, err := y.boxes.Metrics(y.ctx, "s1")
			require.NoError(t, err)
			require.Equal(t, "s1", m.ID)
			require.NoError(t, y.boxes.Update(y.ctx, "s1", sandboxOf(y, "s1"), "labels"))
			require.True(t, errdefs.IsAlreadyExists(y.boxes.Create(y.ctx, sandboxOf(y, "s1"))))

			exited := make(chan error, 1)
			go func() {
				e, err := y.boxes.Wait(y.ctx, "s1")
				if err == nil && e.ExitStatus != 137 {
					err = errdefs.ErrUnknown
				}
				exited <- err
			}()
			y.shim.Await(shimtest.KindRPC, "WaitSandbox", 1)
			require.Empty(t, exited)
			require.NoError(t, y.boxes.Stop(y.ctx, "s1", sandbox.WithTimeout(5*time.Second)))
			require.NoError(t, <-exited)
			s, err = y.boxes.Status(y.ctx, "s1", false)
			require.NoError(t, err)
			require.Equal(t, "SANDBOX_NOTREADY", s.State)
			require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
			y.empty()
			y.unknownBox("s1")
			tasks, err := y.tasks.Tasks(y.ctx, true)
			require.NoError(t, err)
			require.Empty(t, tasks)
		})
	}
}

// TestSandboxFails: what does not come up leaves nothing, and the id is free.
func TestSandboxFails(t *testing.T) {
	for _, method := range []string{"CreateSandbox", "StartSandbox"} {
		t.Run(method, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{Sandbox: true,
				Rules: []shimtest.Rule{{Method: method, Code: "ResourceExhausted", Message: "no memory", Times: 1}}})
			err := y.boxes.Create(y.ctx, sandboxOf(y, "s1"))
			if method == "StartSandbox" {
				require.NoError(t, err)
				_, err = y.boxes.Start(y.ctx, "s1")
			}
			require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
			require.ErrorContains(t, err, "no memory")
			y.empty()
			require.Empty(t, y.shim.Procs())
			y.box("s1")
			require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
			y.empty()
		})
	}
}

// TestSandboxShutdownFails: it may be tried again.
func TestSandboxShutdownFails(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true,
		Rules: []shimtest.Rule{{Method: "ShutdownSandbox", Code: "Internal", Message: "busy", Times: 1}}})
	y.box("s1")
	require.ErrorContains(t, y.boxes.Shutdown(y.ctx, "s1"), "busy")
	_, err := y.boxes.Status(y.ctx, "s1", false)
	require.NoError(t, err)
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	y.empty()
}

// TestJoin: containers share their sandbox's process and its one connection, by the id or by the address that the
// controller told.
func TestJoin(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	box := y.box("s1")
	byID, byAddress := y.opts("sleep"), y.opts("sleep")
	byID.SandboxID = "s1"
	byAddress.SandboxID, byAddress.Address, byAddress.Version = "s1", box.Address, box.Version
	for id, o := range map[string]runtime.CreateOpts{"c1": byID, "c2": byAddress} {
		task, err := y.tasks.Create(y.ctx, id, o)
		require.NoError(t, err)
		require.NoError(t, task.Start(y.ctx))
	}
	require.Equal(t, 1, y.shim.Count(shimtest.KindExec, "start"))
	y.oneConnection("c1")
	require.Same(t, y.instance("c1").process(), y.instance("s1").process())
	require.Same(t, y.instance("c2").process(), y.instance("s1").process())
	from := 0
	y.restart(func() { from = len(y.shim.Trace()) })
	y.inState("c1", life.Running)
	y.inState("c2", life.Running)
	y.inState("s1", life.Running)
	y.oneConnection("c1")
	require.Equal(t, 1, y.rpcs(from, "State", "c1"))
	require.Same(t, y.instance("c1").process(), y.instance("s1").process())

	y.remove("c1")
	y.remove("c2")
	require.Zero(t, y.shim.Count(shimtest.KindRPC, "Shutdown"), "the sandbox is still there")
	s, err := y.boxes.Status(y.ctx, "s1", false)
	require.NoError(t, err)
	require.Equal(t, "SANDBOX_READY", s.State)
	o := y.opts("sleep")
	o.SandboxID = "s1"
	_, err = y.tasks.Create(y.ctx, "c3", o)
	require.NoError(t, err)
	y.remove("c3")
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	y.empty()
}

// TestJoinCutShort: the daemon dies after a container's bundle says how to reach the sandbox's shim. No task was
// created, so nothing is told of one, even if the shim dies too.
func TestJoinCutShort(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	y.box("s1")
	p := y.instance("s1").process()
	require.True(t, p.Leave(behind{y.instance("s1")}), "so that the create fails right after that")
	o := y.opts("sleep")
	o.SandboxID = "s1"
	require.ErrorIs(t, y.launchOf("c1", o), shimproc.ErrClosing)
	require.FileExists(t, filepath.Join(y.bundle("c1"), "bootstrap.json"))
	require.False(t, y.record("c1").Created)
	y.restart(func() { y.killShim("s1") })
	y.empty()
	y.events.settle()
	require.Empty(t, y.events.of("c1"), "there was no task")
}

// TestJoinWhatIsNotThere: a sandbox that the store does not know means a shim of its own; one without a shim is an
// error.
func TestJoinWhatIsNotThere(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	o := y.opts("sleep")
	o.SandboxID = "unknown"
	_, err := y.tasks.Create(y.ctx, "c1", o)
	require.NoError(t, err)
	require.Equal(t, 1, y.shim.Count(shimtest.KindExec, "start"))
	y.remove("c1")
	y.sandboxes.add("known")
	o.SandboxID = "known"
	_, err = y.tasks.Create(y.ctx, "c1", o)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	o.Address, o.Version = "carrier-pigeon://coop", 3
	_, err = y.tasks.Create(y.ctx, "c1", o)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	y.sandboxes.fail(errdefs.ErrUnavailable)
	_, err = y.tasks.Create(y.ctx, "c1", o)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	y.empty()
}

// TestJoinWithoutTheBinary: a container that joins a sandbox's shim starts none, so it needs no binary, whatever way
// its runtime is named.
func TestJoinWithoutTheBinary(t *testing.T) {
	for _, name := range []string{"path", "name"} {
		t.Run(name, func(t *testing.T) {
			y := coldYard(t, shimtest.Scenario{Sandbox: true})
			y.config.Runtimes["io.containerd.fake.v1"] = RuntimeConfig{Path: y.shim.Path}
			y.boot()
			box := y.box("s1")
			require.NoError(t, os.Rename(y.shim.Path, y.shim.Path+".away"))
			o := y.opts("sleep")
			if name == "name" {
				o.Runtime = "io.containerd.fake.v1"
			}
			_, err := y.tasks.Create(y.ctx, "alone", o)
			require.True(t, errdefs.IsNotFound(err), "it would need a shim of its own: %v", err)
			o.SandboxID, o.Address, o.Version = "s1", box.Address, 2
			_, err = y.tasks.Create(y.ctx, "old", o)
			require.True(t, errdefs.IsNotFound(err), "that version wants a start for each container: %v", err)

			o.Version = box.Version
			task, err := y.tasks.Create(y.ctx, "c1", o)
			require.NoError(t, err)
			require.NoError(t, task.Start(y.ctx))
			b, err := y.instance("c1").bundle.ShimBinary()
			require.NoError(t, err)
			require.Equal(t, y.shim.Path, b, "where it was")
			y.restart()
			y.inState("c1", life.Running)
			y.remove("c1")
			require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
			y.empty()
		})
	}
}

// TestForeignSandboxer: a sandboxer behind a proxy plugin hands over only an address. Its shim is not ours to shut
// down.
func TestForeignSandboxer(t *testing.T) {
	other := newYard(t, shimtest.Scenario{Sandbox: true})
	box := other.box("s1")
	y := &yard{}
	*y = *other // a second daemon, which knows of the sandbox by its address alone
	y.dir = other.path("second")
	require.NoError(t, os.Mkdir(y.dir, 0o700))
	y.boot()
	o := y.opts("sleep")
	o.SandboxID, o.Address, o.Version = "s1", box.Address, box.Version
	for range 2 {
		task, err := y.tasks.Create(y.ctx, "c1", o)
		require.NoError(t, err)
		require.NoError(t, task.Start(y.ctx))
		y.restart()
		y.inState("c1", life.Running)
		y.remove("c1")
		y.empty()
		require.Zero(t, y.shim.Count(shimtest.KindRPC, "Shutdown"), "the sandboxer decides when its shim goes")
	}
	_, err := y.tasks.Create(y.ctx, "c1", failingOpts(y, o))
	require.ErrorContains(t, err, "executable file not found")
	y.empty()
	require.Zero(t, y.shim.Count(shimtest.KindRPC, "Shutdown"))
	require.Len(t, y.shim.Procs(), 2, "the sandbox runs")
	y.halt()
	require.NoError(t, other.boxes.Shutdown(other.ctx, "s1"))
	other.empty()
}

func failingOpts(y *yard, o runtime.CreateOpts) runtime.CreateOpts {
	o.Spec = anyOf(y, args("missing"))
	return o
}

// TestDeathOfASandbox: its containers are told and cleaned up, the sandbox is gone without a word of tasks.
func TestDeathOfASandbox(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	y.box("s1")
	o := y.opts("sleep")
	o.SandboxID = "s1"
	task, err := y.tasks.Create(y.ctx, "c1", o)
	require.NoError(t, err)
	require.NoError(t, task.Start(y.ctx))
	waits := make(chan error, 1)
	go func() { _, err := y.boxes.Wait(y.ctx, "s1"); waits <- err }()
	y.shim.Await(shimtest.KindRPC, "WaitSandbox", 1)
	w := y.waiting(task)
	y.killShim("s1")
	require.Equal(t, uint32(137), (<-w).exit.Status)
	require.NoError(t, <-waits)
	require.Equal(t, []string{"c1", ""}, idsOf(y.exitsOf("c1")))
	y.empty()
	y.unknownBox("s1")
	require.Empty(t, y.events.of("s1"))
}

// TestSandboxChecks: a namespace and a proper id are required.
func TestSandboxChecks(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	require.Error(t, y.boxes.Create(context.Background(), sandboxOf(y, "s1")))
	require.True(t, errdefs.IsInvalidArgument(y.boxes.Create(y.ctx, sandboxOf(y, "../s1"))))
	_, err := y.boxes.Status(context.Background(), "s1", false)
	require.Error(t, err)
}

// TestSandboxStalled: the calls end with Unavailable or a deadline, and nothing is killed.
func TestSandboxStalled(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	y.box("s1")
	setTimeout(t, shimproc.TimeoutLoad, 300*time.Millisecond)
	cont := y.stop("s1")
	ctx, cancel := context.WithTimeout(y.ctx, 200*time.Millisecond)
	defer cancel()
	_, err := y.boxes.Status(ctx, "s1", false)
	require.True(t, errdefs.IsDeadlineExceeded(err), "%v", err)
	require.True(t, errdefs.IsDeadlineExceeded(y.boxes.Stop(ctx, "s1")))
	require.Len(t, y.shim.Procs(), 2)
	y.restart()
	_, err = y.boxes.Status(y.ctx, "s1", false)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.True(t, errdefs.IsUnavailable(y.boxes.Shutdown(y.ctx, "s1")))
	setTimeout(t, shimproc.TimeoutLoad, time.Minute)
	cont()
	y.inState("s1", life.Running)
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	y.empty()
}
