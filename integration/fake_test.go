// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// fakeCase is a kind of shim that exists but cannot be had here.
type fakeCase struct {
	scenario shimtest.Scenario
	install  []shimtest.InstallOption
	// lacks: it has neither Pids nor Exec, as runwasi's shims have not.
	lacks bool
}

var fakes = map[string]fakeCase{
	"ttrpc": {},
	"grpc":  {scenario: shimtest.Scenario{Transport: "grpc"}},
	"warns": {scenario: shimtest.Scenario{
		Start:  shimtest.StartFaults{Stderr: "WARNING: something is deprecated\nunix:///not/the/address\n"},
		Delete: shimtest.DeleteFaults{Stderr: "WARNING: this too\n"},
		Log:    []string{"a line of the log"},
	}},
	// Rust's ttrpc says NotFound of a method that it lacks, and its shims of
	// some time fail on the newer start protocol, leaving their daemon behind.
	"rust": {
		scenario: shimtest.Scenario{
			Generation: shimtest.Legacy,
			Start:      shimtest.StartFaults{LeakOnRefusal: true},
			Rules:      []shimtest.Rule{{Method: "Pids", Unsupported: true}, {Method: "Exec", Unsupported: true}},
		},
		lacks: true,
	},
	"rust, known to be old": {
		scenario: shimtest.Scenario{
			Generation: shimtest.Legacy,
			Rules:      []shimtest.Rule{{Method: "Pids", Unsupported: true}, {Method: "Exec", Unsupported: true}},
		},
		install: []shimtest.InstallOption{shimtest.WithoutMarker()},
		lacks:   true,
	},
	"script": {install: []shimtest.InstallOption{shimtest.WithScript()}},
	"script of old": {scenario: shimtest.Scenario{Generation: shimtest.Legacy},
		install: []shimtest.InstallOption{shimtest.WithScript()}},
	"abstract":            {scenario: shimtest.Scenario{Generation: shimtest.Lenient, Socket: shimtest.Abstract}},
	"bare path over grpc": {scenario: shimtest.Scenario{Transport: "grpc", Socket: shimtest.Bare}},
	"hvsock":              {scenario: shimtest.Scenario{Socket: shimtest.HVsock}},
	"says 3 and serves 2": {scenario: shimtest.Scenario{Versions: []int{2}}},
	"version 2 over JSON": {scenario: shimtest.Scenario{Generation: shimtest.Dropping,
		Reply: shimtest.Reply{Version: 2}}},
	"keeps start's stdout": {scenario: shimtest.Scenario{Start: shimtest.StartFaults{InheritStdout: true}}},
}

// fake makes a container of a fake shim.
func fake(shim *shimtest.Shim) setupOpt {
	return func(s *setup) { s.runtime, s.options = shim.Path, nil }
}

// Each kind runs tasks, over a restart of each kind too.
func TestFakeShims(t *testing.T) {
	t.Parallel()
	for name, c := range fakes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needRoot(t)
			shim := shimtest.Install(t, c.scenario, c.install...)
			n := newNode(t)
			log := n.watch()
			once := n.create("once", spec("exit", "7"), fake(shim)).newTask()
			e := once.wait()
			once.start()
			require.EqualValues(t, 7, e.code())
			require.EqualValues(t, 7, once.remove().ExitCode())
			log.waitFor("/tasks/exit", "once")

			n.run("task", spec("sleep"), fake(shim))
			for _, end := range ends {
				pid := n.taskOf("task").Pid()
				n.run("ended", spec("exit", "9"), fake(shim)).wait().code()
				end(n)
				n.Run()
				j := n.taskOf("task")
				require.Equal(t, containerd.Running, j.status())
				require.Equal(t, pid, j.Pid())
				c.checkMethods(t, j)
				ended := n.taskOf("ended")
				require.Equal(t, containerd.Stopped, ended.status())
				require.EqualValues(t, 9, ended.remove().ExitCode())
			}
			n.taskOf("task").finish()

			// Its death is noticed, whatever it speaks.
			log = n.watch()
			victim := n.run("victim", spec("sleep"), fake(shim))
			e = victim.waiting()
			require.NoError(t, shim.Daemon("victim").Kill())
			require.NotZero(t, e.code())
			log.waitFor("/tasks/exit", "victim")
			log.waitFor("/tasks/delete", "victim")
			require.Equal(t, victim.Pid(), log.of("victim")[2].exit.Pid)
			victim.b.remove()
		})
	}
}

// checkMethods uses Pids and Exec, or hears that they are not there: a NotFound
// would say that the container is gone.
func (c *fakeCase) checkMethods(t *testing.T, j *job) {
	t.Helper()
	n := j.b.n
	if !c.lacks {
		pids, err := j.Pids(n.ctx)
		require.NoError(t, err)
		require.NotEmpty(t, pids)
		_, code := j.execOutput("exec", "exit", "5")
		require.EqualValues(t, 5, code)
		return
	}
	_, err := j.Pids(n.ctx)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	_, err = j.Exec(n.ctx, "exec", process("true"), cio.NullIO)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	require.Equal(t, containerd.Running, j.status())
}

// A gRPC connection that nothing goes over is no lost one.
func TestIdleGRPC(t *testing.T) {
	t.Parallel()
	needRoot(t)
	shim := shimtest.Install(t, shimtest.Scenario{Transport: "grpc"})
	n := newNode(t)
	j := n.run("idle", spec("exit-after", "3000", "3"), fake(shim))
	require.EqualValues(t, 3, j.wait().code())
	require.Equal(t, containerd.Stopped, j.status())
	require.ErrorIs(t, j.Kill(n.ctx, unix.SIGKILL), errdefs.ErrNotFound)
	require.EqualValues(t, 3, j.remove().ExitCode())
	require.Equal(t, 1, shim.Count(shimtest.KindExec, "start"))
}
