// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	goruntime "runtime"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// failing is a create that fails.
type failing struct {
	name     string
	scenario shimtest.Scenario
	change   func(*yard, *runtime.CreateOpts)
	is       func(error) bool
	says     string
	// load and cleanup are the timeouts where the create, or its undo, waits for them; 0: as ever.
	load, cleanup time.Duration
}

var failingCreates = []failing{
	{name: "no spec", change: func(_ *yard, o *runtime.CreateOpts) { o.Spec = nil }, is: errdefs.IsInvalidArgument,
		says: "spec"},
	{name: "spec is no JSON", is: errdefs.IsInvalidArgument, says: "OCI spec",
		change: func(y *yard, o *runtime.CreateOpts) {
			o.Spec = &anypb.Any{TypeUrl: anyOf(y, &specs.Spec{}).GetTypeUrl(), Value: []byte(`{"mounts":`)}
		}},
	{name: "binary missing",
		change: func(_ *yard, o *runtime.CreateOpts) { o.Runtime = "/nowhere/containerd-shim-nope-v1" },
		is:     errdefs.IsNotFound, says: "/nowhere/containerd-shim-nope-v1"},
	{name: "runtime missing", change: func(_ *yard, o *runtime.CreateOpts) { o.Runtime = "io.containerd.nope.v9" },
		is: errdefs.IsNotFound, says: "containerd-shim-nope-v9"},
	{name: "runtime malformed", change: func(_ *yard, o *runtime.CreateOpts) { o.Runtime = "nope" },
		is: errdefs.IsInvalidArgument, says: "nope"},
	{name: "start fails at entry", scenario: starting(shimtest.StartFaults{FailAt: shimtest.AtEntry,
		FailText: "no cgroup"}), says: "no cgroup"},
	{name: "start fails before the fork", scenario: starting(shimtest.StartFaults{FailAt: shimtest.BeforeFork}),
		says: "before-fork"},
	{name: "start fails after the fork", scenario: starting(shimtest.StartFaults{FailAt: shimtest.AfterFork,
		LeaveDaemon: true}), says: "after-fork"},
	{name: "start dies after the fork", scenario: starting(shimtest.StartFaults{DieAt: shimtest.AfterFork})},
	{name: "start dies after its reply", scenario: starting(shimtest.StartFaults{DieAt: shimtest.AfterReply})},
	{name: "shim refuses both protocols", scenario: shimtest.Scenario{Generation: shimtest.Legacy,
		Start: shimtest.StartFaults{LeakOnRefusal: true, FailAt: shimtest.AfterFork, LeaveDaemon: true}}},
	{name: "garbage", scenario: replying(shimtest.Reply{Format: shimtest.Garbage})},
	{name: "empty reply", scenario: replying(shimtest.Reply{Format: shimtest.Empty})},
	{name: "endless reply", scenario: replying(shimtest.Reply{Format: shimtest.Huge})},
	{name: "no address", scenario: replying(shimtest.Reply{Omit: []string{"address"}}), says: "address"},
	{name: "unknown protocol", scenario: replying(shimtest.Reply{Protocol: "carrier-pigeon"}), says: "carrier-pigeon"},
	{name: "version 4", scenario: replying(shimtest.Reply{Version: 4}), is: errdefs.IsNotImplemented, says: "version"},
	{name: "nobody at the address", scenario: replying(shimtest.Reply{Address: "unix:///nowhere/s.sock"}),
		says: "/nowhere/s.sock", load: 200 * time.Millisecond},
	{name: "mounts cannot be activated", is: errdefs.IsFailedPrecondition, says: "no disk",
		change: func(y *yard, _ *runtime.CreateOpts) {
			y.mounts.failWith(errors.Wrap(errdefs.ErrFailedPrecondition, "no disk"))
		}},
	{name: "command missing", change: func(y *yard, o *runtime.CreateOpts) { o.Spec = anyOf(y, args("missing")) },
		says: `exec: "missing": executable file not found in $PATH`},
	{name: "Create fails", scenario: rules(shimtest.Rule{Method: "Create", Code: "ResourceExhausted",
		Message: "no memory"}), is: errdefs.IsResourceExhausted, says: "no memory"},
	{name: "Create fails having created", scenario: rules(shimtest.Rule{Method: "Create", After: true, Code: "Unknown",
		Message: "boom"}), says: "boom"},
	{name: "Create is not implemented", scenario: rules(shimtest.Rule{Method: "Create", Unsupported: true}),
		is: errdefs.IsNotImplemented},
	{name: "shim dies in Create", scenario: rules(shimtest.Rule{Method: "Create", Die: true})},
	{name: "shim dies having created", scenario: rules(shimtest.Rule{Method: "Create", After: true, Die: true})},
	{name: "connection lost in Create", scenario: rules(shimtest.Rule{Method: "Create", After: true, Drop: true})},
	{name: "undo fails too", scenario: shimtest.Scenario{
		Rules: []shimtest.Rule{{Method: "Create", After: true, Message: "boom"}, {Method: "Delete", Message: "no"},
			{Method: "Shutdown", Message: "no"}},
		Delete: shimtest.DeleteFaults{Fail: 1},
	}, says: "boom", cleanup: 2 * time.Second},
}

// TestCreateFails at each step: nothing is left and nothing is told, and the id is free.
func TestCreateFails(t *testing.T) {
	for _, c := range failingCreates {
		t.Run(c.name, func(t *testing.T) {
			for name, d := range map[string]time.Duration{shimproc.TimeoutLoad: c.load, shimproc.TimeoutCleanup: c.cleanup} {
				if d > 0 {
					setTimeout(t, name, d)
				}
			}
			y := newYard(t, c.scenario)
			opts := withMount(y.opts("sleep"))
			if c.change != nil {
				c.change(y, &opts)
			}
			_, err := y.tasks.Create(y.ctx, "c1", opts)
			require.Error(t, err)
			if c.is != nil {
				require.True(t, c.is(err), "class of: %v", err)
			}
			require.ErrorContains(t, err, c.says)
			_, err = y.tasks.Get(y.ctx, "c1")
			require.True(t, errdefs.IsNotFound(err), "%v", err)
			y.empty()
			require.Empty(t, y.shim.Procs())
			require.Empty(t, y.mounts.names())
			y.events.settle()
			require.Len(t, y.events.of("c1", runtime.TaskExitEventTopic, runtime.TaskDeleteEventTopic),
				y.shim.Count(shimtest.KindEvent, runtime.TaskExitEventTopic)+y.shim.Count(shimtest.KindEvent,
					runtime.TaskDeleteEventTopic),
				"the manager tells nothing of a task that never was, whatever its shim told")

			if c.says != "boom" { // the same for all that leave nothing
				return
			}
			y.shim.Update(func(s *shimtest.Scenario) { *s = shimtest.Scenario{} })
			y.mounts.failWith(nil)
			y.create("c1", "sleep")
			y.remove("c1")
			y.empty()
		})
	}
}

// TestCreateCancelled while the shim creates: what it makes afterwards is undone too.
func TestCreateCancelled(t *testing.T) {
	for _, c := range []struct {
		name  string
		after bool
		then  func(*yard)
	}{
		{"the shim answers later", false,
			func(y *yard) { y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil }) }},
		{"the shim has created", true, func(y *yard) { y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil }) }},
		{"the shim dies", true, func(y *yard) { require.NoError(y, y.shim.Daemon("c1").Kill()) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t, rules(shimtest.Rule{Method: "Create", Hang: true, After: c.after}))
			ctx, cancel := context.WithCancel(y.ctx)
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				_, err := y.tasks.Create(ctx, "c1", withMount(y.opts("sleep")))
				failed <- err
			}()
			y.shim.Await(shimtest.KindRPC, "Create", 1)
			if c.after {
				y.until("the container exists", func() bool { return len(y.shim.Procs(shimtest.RoleGuest)) == 1 })
			}
			cancel()
			c.then(y)
			require.ErrorIs(t, <-failed, context.Canceled)
			y.empty()
			require.Empty(t, y.shim.Procs())
			require.Empty(t, y.mounts.names())
		})
	}
}

// TestEventsOfACreateThatItsClientGaveUp are the shim's own. They cannot be held back, and come in the order of a
// task's life.
func TestEventsOfACreateThatItsClientGaveUp(t *testing.T) {
	s := rules(shimtest.Rule{Method: "Create", Hang: true, After: true})
	s.EarlyDelete = true
	y := newYard(t, s)
	ctx, cancel := context.WithCancel(y.ctx)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := y.tasks.Create(ctx, "c1", y.opts("sleep"))
		failed <- err
	}()
	y.events.await("c1", runtime.TaskCreateEventTopic, 1)
	cancel()
	y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil })
	require.ErrorIs(t, <-failed, context.Canceled)
	y.empty()
	y.events.await("c1", runtime.TaskExitEventTopic, 1)
	y.events.await("c1", runtime.TaskDeleteEventTopic, 1)
	heard := y.events.of("c1")
	require.Len(t, heard, 3, "%+v", heard)
	require.Equal(t, runtime.TaskCreateEventTopic, heard[0].Topic)
	require.Equal(t, runtime.TaskExitEventTopic, heard[1].Topic)
	require.Equal(t, runtime.TaskDeleteEventTopic, heard[2].Topic)
	require.EqualValues(t, 137, heard[1].Status)
	require.EqualValues(t, 137, heard[2].Status)
}

// TestCreateCancelledAnywhere: whatever a create has come to, all of it is taken back.
func TestCreateCancelledAnywhere(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	began := time.Now()
	y.create("c1", "sleep")
	usual := time.Since(began)
	y.remove("c1")
	rounds := 25
	if testing.Short() {
		rounds = 10
	}
	for range rounds {
		ctx, cancel := context.WithTimeout(y.ctx, rand.N(usual))
		_, err := y.tasks.Create(ctx, "c1", withMount(y.opts("sleep")))
		cancel()
		if err == nil {
			y.remove("c1")
		}
	}
	y.empty()
	require.Empty(t, y.mounts.names())
	y.shim.AwaitNoProcs()
}

// TestCreateOnAFullDisk lets the disk be full at every step of a create, from the first directory to the last record.
func TestCreateOnAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	y := coldYard(t, shimtest.Scenario{})
	require.NoError(t, os.Mkdir(y.path("state"), 0o711))
	require.NoError(t, unix.Mount("tmpfs", y.path("state"), "tmpfs", 0, "size=1m,nr_inodes=64"))
	t.Cleanup(func() { _ = unix.Unmount(y.path("state"), unix.MNT_DETACH) })
	y.boot()
	failed := 0
	for inodes := 2; ; inodes++ {
		require.NoError(t, unix.Mount("tmpfs", y.path("state"), "tmpfs", unix.MS_REMOUNT,
			"size=1m,nr_inodes="+strconv.Itoa(inodes)))
		_, err := y.tasks.Create(y.ctx, "c1", y.opts("sleep"))
		if err == nil {
			break
		}
		failed++
		require.Less(t, failed, 40)
		require.NoError(t, unix.Mount("tmpfs", y.path("state"), "tmpfs", unix.MS_REMOUNT, "size=1m,nr_inodes=64"))
		y.empty()
		require.Empty(t, y.shim.Procs())
	}
	require.Greater(t, failed, 3)
	require.NoError(t, unix.Mount("tmpfs", y.path("state"), "tmpfs", unix.MS_REMOUNT, "size=1m,nr_inodes=64"))
	y.remove("c1")
	big := y.opts("sleep")
	big.Spec = anyOf(y, &specs.Spec{Hostname: string(bytes.Repeat([]byte("h"), 2<<20))})
	_, err := y.tasks.Create(y.ctx, "c1", big)
	require.ErrorIs(t, err, unix.ENOSPC)
	y.empty()
	y.halt()
}

func TestCreateChecks(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	_, err := y.tasks.Create(context.Background(), "c1", y.opts("sleep"))
	require.True(t, errdefs.IsFailedPrecondition(err), "a namespace is required: %v", err)
	for _, id := range []string{"", ".", "..", "a/b", "_warm", "../../etc"} {
		_, err := y.tasks.Create(y.ctx, id, y.opts("sleep"))
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", id, err)
	}
	y.create("c1", "sleep")
	_, err = y.tasks.Create(y.ctx, "c1", y.opts("sleep"))
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	require.Equal(t, 1, y.shim.Count(shimtest.KindExec, "start"))
	require.NoError(t, y.boxes.Create(y.ctx, sandboxOf(y, "s1")))
	_, err = y.tasks.Create(y.ctx, "s1", y.opts("sleep"))
	require.True(t, errdefs.IsAlreadyExists(err), "a sandbox has the id: %v", err)
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	y.remove("c1")
	y.empty()
}

// TestCreatesOfRuncHaveTurns: each goes on until runc is done before one more begins, and one that hangs holds up the
// others for a moment only.
func TestCreatesOfRuncHaveTurns(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{})
	hang := func() {
		y.shim.Update(func(s *shimtest.Scenario) { s.Rules = []shimtest.Rule{{Method: "Create", Hang: true}} })
	}
	goOn := func() { y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil }) }
	var creates errgroup.Group
	create := func(id string) {
		creates.Go(func() error {
			_, err := y.tasks.Create(y.ctx, id, y.runcOpts("sleep"))
			return err
		})
	}
	all := 2 * goruntime.GOMAXPROCS(0)

	y.m.createTurn = time.Hour
	hang()
	for n := range all {
		create(fmt.Sprint("first-", n))
	}
	y.until("as many hang as may be under way", func() bool { return y.shim.Count(shimtest.KindRPC, "Create") == all })
	create("waits")
	y.until("the next waits", func() bool { return y.m.launcher.Waiting() == 1 })
	goOn()
	require.NoError(t, creates.Wait())

	y.m.createTurn = time.Millisecond
	hang()
	for n := range all + 1 {
		create(fmt.Sprint("second-", n))
	}
	y.until("none holds up another", func() bool {
		return y.shim.Count(shimtest.KindRPC, "Create") == 2*all+2
	})
	goOn()
	require.NoError(t, creates.Wait())
	for n := range all + 1 {
		y.remove(fmt.Sprint("second-", n))
	}
	for n := range all {
		y.remove(fmt.Sprint("first-", n))
	}
	y.remove("waits")
	y.empty()
}

// TestWhoHasATurn: a create that may have to wait for another has none, since others would wait with it.
func TestWhoHasATurn(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{})
	runc := shimclient.Binary{Runtime: plugins.RuntimeRuncV2}
	for name, c := range map[string]struct {
		binary shimclient.Binary
		groups []string
		to     *sandboxShim
		want   bool
	}{
		"alone":                {binary: runc, want: true},
		"first of a pod":       {binary: runc, groups: []string{"c1"}, want: true},
		"in another's group":   {binary: runc, groups: []string{"c1", "pod"}},
		"in a sandbox":         {binary: runc, to: new(sandboxShim)},
		"of another's runtime": {binary: shimclient.Binary{Runtime: "io.containerd.kata.v2"}},
	} {
		i := newInstance(y.m, y.tasks.layout, life.Task, "ns", "c1", life.Launching)
		i.describe(&createRequest{specFacts: specFacts{groups: c.groups}}, c.binary)
		_, turn, err := y.m.turnFor(y.ctx, i, c.to)
		require.NoError(t, err, name)
		require.Equal(t, c.want, turn != nil, name)
		turn.End()
	}
}
