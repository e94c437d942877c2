// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// cutOff are the ways in which a shim that lives cannot be connected to.
var cutOff = []struct {
	name     string
	scenario shimtest.Scenario
	do       func(*yard)
}{
	{"its socket is removed", shimtest.Scenario{}, func(y *yard) {
		y.unlisten("c1")
		require.NoError(y, os.Remove(y.shim.Sockets()[0]), "as a tmp cleaner does")
	}},
	{"its socket refuses", shimtest.Scenario{}, func(y *yard) { y.unlisten("c1") }},
	{"a gRPC shim is stopped over a restart", shimtest.Scenario{Transport: "grpc"}, func(y *yard) {
		y.restart(func() { y.stop("c1") })
	}},
}

// unlisten makes a task's shim give up its socket and its connections.
func (y *yard) unlisten(id string) {
	y.Helper()
	y.shim.Update(func(s *shimtest.Scenario) {
		s.Rules = []shimtest.Rule{{Method: "Stats", Unlisten: true,
			Drop: true}}
	})
	_, err := mustGet(y, id).Stats(y.ctx)
	require.True(y, errdefs.IsUnavailable(err), "%v", err)
}

// TestWaysOutOfASilenceWithoutAConnection: Kill(9) of a proven init and then Delete, whichever of the timeouts is the
// longer one.
func TestWaysOutOfASilenceWithoutAConnection(t *testing.T) {
	for _, c := range cutOff {
		for name, timeouts := range map[string]struct{ load, cleanup time.Duration }{
			"load first":    {200 * time.Millisecond, time.Minute},
			"cleanup first": {time.Minute, time.Second},
		} {
			t.Run(c.name+", "+name, func(t *testing.T) {
				y := newYard(t, c.scenario)
				running := y.state(y.run("c1", "sleep"))
				y.hurry("c1")
				setTimeout(t, shimproc.TimeoutLoad, timeouts.load)
				setTimeout(t, shimproc.TimeoutCleanup, timeouts.cleanup)
				c.do(y)
				y.awaitSilence("c1")
				task := mustGet(y, "c1")
				require.Equal(t, running, y.state(task))
				_, err := task.Pids(y.ctx)
				require.True(t, errdefs.IsUnavailable(err), "%v", err)
				require.Len(t, y.shim.Procs(), 2, "nothing was killed")
				require.Empty(t, y.events.of("c1", exitTopic))

				w := y.waiting(task)
				if timeouts.load < time.Minute {
					require.NoError(t, task.Kill(y.ctx, 9, true))
				} else {
					require.NoError(t, y.shim.Procs(shimtest.RoleGuest)[0].Kill())
				}
				y.shim.AwaitNoProcs(shimtest.RoleGuest)
				exit, err := y.tasks.Delete(y.ctx, "c1")
				require.NoError(t, err)
				require.NotZero(t, exit.Status)
				require.Equal(t, exit.Status, (<-w).exit.Status)
				y.endedOnce("c1")
			})
		}
	}
}

// TestInitOfASilentShimEndsDuringADelete: from then on the shim has one cleanup timeout, however long a Delete may take.
func TestInitOfASilentShimEndsDuringADelete(t *testing.T) {
	for _, c := range cutOff {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t, c.scenario)
			y.run("c1", "sleep")
			y.hurry("c1")
			setTimeout(t, shimproc.TimeoutLoad, time.Hour)
			setTimeout(t, shimproc.TimeoutCleanup, 500*time.Millisecond)
			c.do(y)
			y.awaitSilence("c1")
			type deleted struct {
				exit *runtime.Exit
				err  error
			}
			ended := make(chan deleted, 1)
			go func() {
				exit, err := y.tasks.Delete(y.ctx, "c1")
				ended <- deleted{exit, err}
			}()
			y.inState("c1", life.Deleting)
			time.Sleep(100 * time.Millisecond)
			require.NoError(t, y.shim.Procs(shimtest.RoleGuest)[0].Kill())
			d := <-ended
			require.NoError(t, d.err)
			require.NotZero(t, d.exit.Status)
			y.endedOnce("c1")
		})
	}
}

// TestDeleteOfASilentShimWhoseExitIsKnown: an init whose exit was told is as gone as one that was seen to go.
func TestDeleteOfASilentShimWhoseExitIsKnown(t *testing.T) {
	for _, c := range cutOff {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t, c.scenario)
			y.kill(y.run("c1", "sleep"))
			y.shim.Await(shimtest.KindEvent, exitTopic, 1) // or the shim tells it to the next daemon again
			y.written("c1")                                // or the next daemon tells it itself
			y.hurry("c1")
			y.events.settle()
			setTimeout(t, shimproc.TimeoutLoad, 200*time.Millisecond)
			c.do(y)
			y.awaitSilence("c1")
			require.Equal(t, runtime.StoppedStatus, y.state(mustGet(y, "c1")).Status)
			exit, err := y.tasks.Delete(y.ctx, "c1")
			require.NoError(t, err)
			require.Equal(t, uint32(137), exit.Status)
			y.endedOnce("c1")
		})
	}
}

// TestEscalateWithoutAConnection ends a shim that cannot be reached as it does one that does not answer.
func TestEscalateWithoutAConnection(t *testing.T) {
	for _, c := range cutOff {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t, c.scenario)
			y.config.EscalateAfter = 300 * time.Millisecond
			y.run("c1", "sleep")
			y.hurry("c1")
			setTimeout(t, shimproc.TimeoutLoad, 200*time.Millisecond)
			c.do(y)
			require.Equal(t, uint32(137), (<-y.waiting(mustGet(y, "c1"))).exit.Status)
			y.endedOnce("c1")
		})
	}
}

// TestShimThatFallsSilentBeforeItsShutdown: the task is deleted in it, so that it has nothing to lose, and the retry
// ends it.
func TestShimThatFallsSilentBeforeItsShutdown(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Rules: []shimtest.Rule{{Method: "Shutdown", Hang: true}}})
	y.kill(y.run("c1", "sleep"))
	y.shim.Await(shimtest.KindEvent, exitTopic, 1)
	y.hurry("c1")
	setTimeout(t, shimproc.TimeoutShutdown, 200*time.Millisecond)
	_, err := y.tasks.Delete(y.ctx, "c1")
	require.True(t, errdefs.IsDeadlineExceeded(err), "%v", err)
	require.Len(t, y.shim.Procs(), 1, "it answers everything else")
	y.silence("c1")
	exit, err := y.tasks.Delete(y.ctx, "c1")
	require.NoError(t, err)
	require.Equal(t, uint32(137), exit.Status)
	y.endedOnce("c1")
}
