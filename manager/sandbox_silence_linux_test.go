// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// hurryBoxes goes on with a daemon that has little patience with the shims of sandboxes.
func (y *yard) hurryBoxes(ids ...string) {
	y.Helper()
	d := deadlines(150 * time.Millisecond)
	for _, m := range []string{"SandboxStatus", "SandboxMetrics", "Platform", "StopSandbox"} {
		d[m] = 150 * time.Millisecond
	}
	y.config.Deadlines = d
	y.restart()
	for _, id := range ids {
		y.inState(id, life.Running)
	}
}

// TestSilentSandbox: a sandbox whose shim is silent has the answers and the ways out that a task has: no call
// outlasts its deadline, the breaker opens, Stop ends its process, and Shutdown its shim then.
func TestSilentSandbox(t *testing.T) {
	stop := func(y *yard) { y.stop("s1") }
	for _, c := range []struct {
		name      string
		transport string
		do        func(*yard)
	}{
		{"it is stopped", "ttrpc", stop},
		{"it is stopped over a restart", "ttrpc", func(y *yard) { y.restart(func() { stop(y) }) }},
		{"a gRPC shim is stopped over a restart", "grpc", func(y *yard) { y.restart(func() { stop(y) }) }},
		{"its socket is removed", "ttrpc", func(y *yard) {
			y.shim.Update(func(s *shimtest.Scenario) {
				s.Rules = []shimtest.Rule{{Method: "SandboxMetrics", Unlisten: true, Drop: true}}
			})
			_, err := y.boxes.Metrics(y.ctx, "s1")
			require.Error(y, err)
			require.NoError(y, os.Remove(y.shim.Sockets()[0]))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{Sandbox: true, Transport: c.transport})
			y.box("s1")
			y.hurryBoxes("s1")
			setTimeout(t, shimproc.TimeoutLoad, 200*time.Millisecond)
			setTimeout(t, shimproc.TimeoutCleanup, time.Second)
			c.do(y)
			_, err := y.boxes.Status(y.ctx, "s1", false)
			require.True(t, errdefs.IsDeadlineExceeded(err) || errdefs.IsUnavailable(err),
				"it ends without a caller's deadline: %v", err)
			y.awaitSilence("s1")
			_, err = y.boxes.Status(y.ctx, "s1", false)
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			_, err = y.boxes.Platform(y.ctx, "s1")
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			require.Len(t, y.shim.Procs(), 2, "nothing was killed")

			exited := make(chan error, 1)
			go func() {
				_, err := y.boxes.Wait(y.ctx, "s1")
				exited <- err
			}()
			require.NoError(t, y.boxes.Stop(y.ctx, "s1"))
			y.shim.AwaitNoProcs(shimtest.RoleGuest)
			require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
			require.NoError(t, <-exited)
			y.empty()
			require.Empty(t, y.shim.Procs())
		})
	}
}

// TestRestoreOfASandboxThatStalls asks with a deadline, again and again, and the sandbox is there as soon as its shim
// answers.
func TestRestoreOfASandboxThatStalls(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	y.box("s1")
	y.hurryBoxes("s1")
	y.restart(func() {
		y.shim.Update(func(s *shimtest.Scenario) { s.Rules = []shimtest.Rule{{Method: "SandboxStatus", Hang: true}} })
	})
	y.shim.Await(shimtest.KindRPC, "SandboxStatus", y.shim.Count(shimtest.KindRPC, "SandboxStatus")+2)
	y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil })
	y.inState("s1", life.Running)
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	y.empty()
}

// TestShutdownOfASandboxThatIsNeeded: a silent shim is not ended while the sandbox's process or a container lives.
func TestShutdownOfASandboxThatIsNeeded(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	y.box("s1")
	task, err := y.tasks.Create(y.ctx, "c1", y.inBox("s1"))
	require.NoError(t, err)
	require.NoError(t, task.Start(y.ctx))
	y.hurryBoxes("s1", "c1")
	cont := y.stop("s1")
	require.NoError(t, y.boxes.Stop(y.ctx, "s1"), "which ends the sandbox's own process")
	y.until("that is known", y.instance("s1").ledger.InitGone)
	y.awaitSilence("s1")
	setTimeout(t, shimproc.TimeoutCleanup, 300*time.Millisecond)
	require.True(t, errdefs.IsDeadlineExceeded(y.boxes.Shutdown(y.ctx, "s1")))
	require.Len(t, y.shim.Procs(), 2, "the shim and the container")
	setTimeout(t, shimproc.TimeoutCleanup, time.Minute)
	cont()
	y.inState("c1", life.Running)
	y.remove("c1")
	y.until("it has answered", func() bool {
		err := y.boxes.Shutdown(y.ctx, "s1")
		return err == nil || errdefs.IsNotFound(err)
	})
	y.empty()
}

// TestDeadlinesOfARuntime are those of all with its own laid over them, for warm shims too.
func TestDeadlinesOfARuntime(t *testing.T) {
	y := coldYard(t, rules(shimtest.Rule{Method: "Pids", Hang: true}))
	y.config.Deadlines = deadlines(time.Minute).With(shimclient.Deadlines{"Pids": 0})
	y.config.Runtimes[y.shim.Path] = RuntimeConfig{Deadlines: shimclient.Deadlines{"Pids": 150 * time.Millisecond}}
	y.boot()
	for _, restart := range []bool{false, true} {
		if restart {
			y.restart()
		} else {
			y.run("c1", "sleep")
		}
		ctx, cancel := context.WithTimeout(y.ctx, time.Minute)
		_, err := mustGet(y, "c1").Pids(ctx)
		cancel()
		require.ErrorIs(t, err, shimclient.ErrNoAnswer, "the runtime's own deadline has passed")
	}
	y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil })
	y.remove("c1")
	y.empty()
}

// TestNoDeadlineForOwnCalls is refused, in the section of all and in that of a runtime.
func TestNoDeadlineForOwnCalls(t *testing.T) {
	none := shimclient.Deadlines{"State": 0}
	for name, c := range map[string]Config{
		"all": {Deadlines: shimclient.DefaultDeadlines().With(none)},
		"a runtime": {
			Deadlines: shimclient.DefaultDeadlines(),
			Runtimes:  map[string]RuntimeConfig{"io.containerd.kata.v2": {Deadlines: none}},
		},
	} {
		c.Events, c.Sandboxes = testExchange, &sandboxStore{}
		_, err := New(t.Context(), c)
		require.True(t, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
		require.ErrorContains(t, err, "State")
	}
}
