// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// withShimConfig adds to the shim manager's section, which is the last of the
// config file before Extra.
func withShimConfig(lines string) change {
	return func(o *daemon.Options) { o.Extra = lines + o.Extra }
}

func (n *node) stall(id string) (shim int) {
	n.t.Helper()
	shim = n.shimPid(testNS, id)
	require.NoError(n.t, unix.Kill(shim, unix.SIGSTOP))
	return shim
}

// letExit makes an obedient container end, without anybody's help.
func (n *node) letExit(id string) {
	n.t.Helper()
	require.NoError(n.t, os.WriteFile(filepath.Join(n.Bundle(testNS, id), "rootfs", "go"), nil, 0o600))
}

// listed gets the states in which the tasks are listed.
func (n *node) listed() map[string]tasktypes.Status {
	n.t.Helper()
	list, err := n.Client().TaskService().List(n.ctx, &tasks.ListTasksRequest{})
	require.NoError(n.t, err)
	states := map[string]tasktypes.Status{}
	for _, p := range list.Tasks {
		states[p.ID] = p.Status
	}
	return states
}

// stays makes sure for a while that a thing is so: longer than the daemon takes
// to doubt a shim and to try again.
func (n *node) stays(what string, is func() bool) {
	n.t.Helper()
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(10 * tick) {
		require.True(n.t, is(), what)
	}
}

// answers waits until a shim that was stalled answers again.
func (n *node) answers(id string) *job {
	n.t.Helper()
	require.Eventually(n.t, func() bool {
		task, err := n.load(id).Task(n.ctx, nil)
		if err != nil {
			return false
		}
		_, err = task.Pids(n.ctx)
		return err == nil || errdefs.IsNotFound(err)
	}, patience, tick, "the shim of %s does not answer", id)
	return n.taskOf(id)
}

// stalls are the two ways in which a shim's stall is met: by a running daemon,
// and by one that starts.
var stalls = map[string]func(*node){
	"live":    func(*node) {},
	"restart": func(n *node) { n.Kill(); n.Run() },
}

// While its shim is stalled a task is what it was last known to be, in State and
// in lists, whatever it was.
func TestStatesOfStalled(t *testing.T) {
	t.Parallel()
	for name, meet := range stalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			running := n.run("running", obedient(7))
			paused := n.run("paused", forever())
			require.NoError(t, paused.Pause(n.ctx))
			created := n.create("created", obedient(8)).newTask()
			require.EqualValues(t, 9, n.run("stopped", shell("exit 9")).wait().code())
			pids := map[string]uint32{"running": running.Pid(), "paused": paused.Pid(), "created": created.Pid()}
			var shims []int
			for _, id := range []string{"running", "paused", "created", "stopped"} {
				shims = append(shims, n.stall(id))
			}
			meet(n)

			n.stays("listed as it is", func() bool {
				l := n.listed()
				return l["running"] == tasktypes.Status_RUNNING && l["paused"] == tasktypes.Status_PAUSED &&
					l["stopped"] == tasktypes.Status_STOPPED
			})
			for id, want := range map[string]containerd.ProcessStatus{
				"running": containerd.Running, "paused": containerd.Paused, "stopped": containerd.Stopped,
			} {
				require.Equal(t, want, n.taskOf(id).status(), id)
			}
			stopped := n.taskOf("stopped")
			s, err := stopped.Status(n.ctx)
			require.NoError(t, err)
			require.EqualValues(t, 9, s.ExitStatus)
			require.EqualValues(t, 9, stopped.wait().code())

			// A created one may have been started meanwhile: nobody knows, and
			// nobody says that it is gone.
			_, err = n.Client().TaskService().Get(n.ctx, &tasks.GetRequest{ContainerID: "created"})
			require.ErrorIs(t, nativeError(err), errdefs.ErrUnavailable)

			// What only the shim could do says why it cannot be done.
			j := n.taskOf("running")
			_, err = j.Pids(n.ctx)
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			_, err = j.Exec(n.ctx, "exec", process("true"), cio.NullIO)
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			require.ErrorIs(t, j.Pause(n.ctx), errdefs.ErrUnavailable)

			e := j.waiting()
			resume(shims)
			for id, pid := range pids {
				require.Equal(t, pid, n.answers(id).Pid(), id)
			}
			n.taskOf("running").obey(7)
			require.EqualValues(t, 7, e.code(), "a Wait outlasts the stall")
			p := n.taskOf("paused")
			require.Equal(t, containerd.Paused, p.status())
			require.NoError(t, p.Resume(n.ctx))
			p.finish()
			c := n.taskOf("created")
			require.Equal(t, containerd.Created, c.status())
			c.start()
			c.obey(8)
			require.EqualValues(t, 9, n.taskOf("stopped").remove().ExitCode())
		})
	}
}

// A container that exits while its shim is stalled: nobody says that it runs,
// nobody says that it is gone, and the exit is told when the shim goes on.
func TestExitWhileStalled(t *testing.T) {
	t.Parallel()
	for name, meet := range stalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			j := n.run("ends", obedient(7))
			pid := j.Pid()
			shim := n.stall("ends")
			meet(n)
			log := n.watch()
			j = n.taskOf("ends")
			e := j.waiting()
			n.letExit("ends")
			require.Eventually(t, func() bool { return !runs(pid) }, patience, tick)
			n.stays("of an unknown state", func() bool {
				s, err := j.Status(n.ctx)
				if !errdefs.IsUnavailable(err) && !errdefs.IsDeadlineExceeded(err) {
					t.Logf("the state is %v, %v", s, err)
					return false
				}
				return true
			})
			resume([]int{shim})
			require.EqualValues(t, 7, e.code())
			require.Equal(t, containerd.Stopped, j.status())
			log.waitFor("/tasks/exit", "ends")
			require.EqualValues(t, 7, n.taskOf("ends").remove().ExitCode())
			require.Equal(t, 1, log.count("/tasks/exit", "ends"))
		})
	}
}

// SIGKILL reaches a container whose shim is stalled, after Kill's deadline, and
// Delete ends the shim then.
func TestKillOfStalled(t *testing.T) {
	t.Parallel()
	for name, meet := range stalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, withShimConfig("[plugins.'io.containerd.shim.v1.manager'.deadlines]\nKill = '1s'\n"))
			j := n.run("stalled", forever())
			n.run("other", obedient(5))
			pid := j.Pid()
			shim := n.stall("stalled")
			meet(n)
			log := n.watch()
			j = n.taskOf("stalled")
			e := j.waiting()

			// Any other signal is the shim's to send.
			require.Error(t, j.Kill(n.ctx, unix.SIGTERM))
			require.True(t, runs(pid))
			if name == "restart" {
				// The pid is proven by an earlier daemon.
				require.Equal(t, containerd.Running, j.status())
			}
			require.NoError(t, j.Kill(n.ctx, unix.SIGKILL))
			require.Eventually(t, func() bool { return !runs(pid) }, patience, tick)
			deleted, err := j.Delete(n.ctx)
			require.NoError(t, err)
			require.EqualValues(t, 137, deleted.ExitCode())
			require.EqualValues(t, 137, e.code())
			require.Eventually(t, func() bool { return !runs(uint32(shim)) }, patience, tick, "the shim is ended")
			log.waitFor("/tasks/exit", "stalled")
			log.waitFor("/tasks/delete", "stalled")
			for _, event := range log.of("stalled") {
				if event.exit != nil {
					require.EqualValues(t, 137, event.exit.ExitStatus)
					require.Equal(t, pid, event.exit.Pid)
				}
			}
			j.b = n.boxOf("stalled")
			j.b.awaitGone()
			j.b.remove()
			n.taskOf("other").obey(5)
		})
	}
}

// Where config says so, a shim that is silent for long is ended, and its
// container with it.
func TestEscalation(t *testing.T) {
	t.Parallel()
	n := newNode(t, withShimConfig("escalate_after = '1s'\n"))
	log := n.watch()
	j := n.run("silent", forever())
	e := j.waiting()
	n.stall("silent")
	require.Eventually(t, func() bool {
		_, err := j.Pids(n.ctx)
		return errdefs.IsNotFound(err)
	}, patience, tick, "the shim is not ended")
	require.EqualValues(t, 137, e.code())
	log.waitFor("/tasks/exit", "silent")
	log.waitFor("/tasks/delete", "silent")
	require.False(t, runs(j.Pid()))
	require.Contains(t, n.Log(), "as configured")
	again := j.b.newTask()
	again.start()
	again.finish()
}

// A stalled shim of a sandbox is no dead one either.
func TestSandboxStalled(t *testing.T) {
	t.Parallel()
	for name, meet := range stalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needRoot(t)
			shim := shimtest.Install(t, shimtest.Scenario{Sandbox: true})
			n := newNode(t)
			n.sandbox("pod", shim)
			n.run("one", spec("sleep"), fake(shim), inSandbox("pod"))
			proc := shim.Daemon("pod")
			require.NoError(t, proc.Stop())
			meet(n)
			n.stays("listed and running", func() bool { return n.listed()["one"] == tasktypes.Status_RUNNING })
			sb, err := n.Client().LoadSandbox(n.ctx, "pod")
			require.NoError(t, err)
			waited, err := sb.Wait(n.ctx)
			require.NoError(t, err)
			require.NoError(t, proc.Cont())
			n.answers("one").finish()
			select {
			case s := <-waited:
				t.Fatalf("the sandbox has ended: %v", s)
			default:
			}
			require.NoError(t, sb.Stop(n.ctx))
			s := <-waited
			require.NoError(t, s.Error())
			require.NoError(t, sb.Shutdown(n.ctx))
		})
	}
}
