// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// obedient is a command that ends with the code when the file /go appears: a
// test makes it with an exec, which shows that execs work as well.
func obedient(code int) setupOpt {
	return shell(fmt.Sprintf("while [ ! -e /go ]; do sleep 0.02; done; exit %d", code))
}

// obey makes an obedient task end, waits for it, and removes it.
func (j *job) obey(code uint32) {
	t := j.b.n.t
	t.Helper()
	e := j.wait()
	out, execCode := j.execOutput("look", "echo", "yes")
	require.EqualValues(t, 0, execCode)
	require.Equal(t, "yes", out)
	// This one may be ended with the container, having done its work.
	_, _ = j.execOutput("go", "touch", "/go")
	require.Equal(t, code, e.code())
	require.Equal(t, containerd.Stopped, j.status())
	require.Equal(t, code, j.remove().ExitCode())
}

// ends are the two ways in which a daemon goes away.
var ends = map[string]func(*node){
	"stopped": func(n *node) { n.Stop() },
	"killed":  func(n *node) { n.Kill() },
}

func TestRestart(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			running := n.run("running", obedient(7))
			paused := n.run("paused", forever())
			require.NoError(t, paused.Pause(n.ctx))
			created := n.create("created", obedient(8)).newTask()
			require.EqualValues(t, 9, n.run("stopped", shell("exit 9")).wait().code())
			pids := map[string]uint32{}
			for _, j := range []*job{running, paused, created} {
				pids[j.ID()] = j.Pid()
			}

			end(n)
			n.Run()

			for id, pid := range pids {
				require.Equal(t, pid, n.taskOf(id).Pid(), id)
			}
			n.taskOf("running").obey(7)
			require.Equal(t, containerd.Paused, n.taskOf("paused").status())
			require.NoError(t, n.taskOf("paused").Resume(n.ctx))
			n.taskOf("paused").finish()
			c := n.taskOf("created")
			require.Equal(t, containerd.Created, c.status())
			c.start()
			c.obey(8)
			s := n.taskOf("stopped")
			require.Equal(t, containerd.Stopped, s.status())
			require.EqualValues(t, 9, s.wait().code())
			require.EqualValues(t, 9, s.remove().ExitCode())
		})
	}
}

// An exit that nobody was listening to is told by State, Wait and Delete.
func TestExitWhileDown(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			pid := int(n.run("ends", forever()).Pid())
			end(n)
			p, err := unix.PidfdOpen(pid, 0)
			require.NoError(t, err)
			defer unix.Close(p)
			require.NoError(t, unix.PidfdSendSignal(p, unix.SIGKILL, nil, 0))
			waitForPidfd(t, p)
			n.Run()
			j := n.taskOf("ends")
			e := j.wait().status()
			require.NoError(t, e.Error())
			require.EqualValues(t, 137, e.ExitCode())
			require.Equal(t, containerd.Stopped, j.status())
			deleted := j.remove()
			require.EqualValues(t, 137, deleted.ExitCode())
			require.Equal(t, e.ExitTime(), deleted.ExitTime())
		})
	}
}

// An exit that came while there was no daemon is told by the shim as soon as there is one. Clients come back later than
// that, each in its own time, and hear it all the same, in the same words, as long as the task is there.
func TestExitWhileDownIsHeardByLateClients(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			pid := n.run("ends", obedient(7)).Pid()
			end(n)
			n.letExit("ends")
			require.Eventually(t, func() bool { return !runs(pid) }, patience, tick)
			n.Run()
			up := time.Now()
			var heard *apievents.TaskExit
			for _, late := range []time.Duration{2 * time.Second, 5 * time.Second, 15 * time.Second} {
				time.Sleep(time.Until(up.Add(late)))
				log := n.watch()
				log.waitFor("/tasks/exit", "ends")
				exit := log.of("ends")[0].exit
				if heard == nil {
					heard = exit
				}
				require.True(t, proto.Equal(heard, exit), "%v, and %v", heard, exit)
			}
			require.EqualValues(t, 7, heard.ExitStatus)
			require.Equal(t, pid, heard.Pid)
			log := n.watch()
			require.EqualValues(t, 7, n.taskOf("ends").remove().ExitCode())
			log.waitFor("/tasks/delete", "ends")
		})
	}
}

// waitForPidfd waits until the process has ended; a pidfd is readable then.
func waitForPidfd(t *testing.T, fd int) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		require.NoError(t, err)
		require.Equal(t, 1, n, "the process does not end")
		return
	}
}

// An exec outlives the daemon, and its exit code is there afterwards.
func TestExecOverRestart(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			j := n.run("task", forever())
			j.exec("second", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 6")
			end(n)
			n.Run()
			j = n.taskOf("task")
			p, err := j.LoadProcess(n.ctx, "second", nil)
			require.NoError(t, err)
			status, err := p.Status(n.ctx)
			require.NoError(t, err)
			require.Equal(t, containerd.Running, status.Status)
			e := waitFor(t, n.ctx, p)
			_, code := j.execOutput("go", "touch", "/go")
			require.EqualValues(t, 0, code)
			require.EqualValues(t, 6, e.code())
			_, err = p.Delete(n.ctx)
			require.NoError(t, err)
			j.finish()
		})
	}
}

// A client that waits while the daemon goes away may lose the connection, but
// must not hear of an exit that was none.
func TestWaitOverRestart(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.run("task", obedient(7))
			waiter := n.Dial()
			defer waiter.Close()
			type answer struct {
				resp *tasks.WaitResponse
				err  error
			}
			first := make(chan answer, 1)
			go func() {
				resp, err := waiter.TaskService().Wait(n.ctx, &tasks.WaitRequest{ContainerID: "task"})
				first <- answer{resp, err}
			}()
			require.Eventually(t, func() bool { return n.Inside(waitFunction) == 1 }, patience, tick)
			end(n)
			n.Run()
			a := <-first
			require.Error(t, a.err, "the container runs, and yet a Wait was answered: %v", a.resp)
			require.ErrorIs(t, nativeError(a.err), errdefs.ErrUnavailable)

			second := make(chan answer, 1)
			go func() {
				resp, err := waiter.TaskService().Wait(n.ctx, &tasks.WaitRequest{ContainerID: "task"})
				second <- answer{resp, err}
			}()
			n.taskOf("task").obey(7)
			a = <-second
			require.NoError(t, a.err)
			require.EqualValues(t, 7, a.resp.ExitStatus)
		})
	}
}

// What a container writes reaches a client that stayed, over a restart.
func TestStreamsOverRestart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var out output
	in := newInput()
	j := n.create("cat", spec("cat")).newTaskIO(n.fifos(in, &out, &out))
	j.start()
	in.write("before\n")
	out.waitFor(t, "before")
	n.Kill()
	in.write("meanwhile\n")
	n.Run()
	in.write("after\n")
	out.waitFor(t, "after")
	require.Equal(t, "before\nmeanwhile\nafter\n", out.String())
	again := n.taskOf("cat")
	e := again.wait()
	in.end()
	require.NoError(t, again.CloseIO(n.ctx, containerd.WithStdinCloser))
	require.EqualValues(t, 0, e.code())
	again.remove()
	j.IO().Wait()
	require.NoError(t, j.IO().Close())
}

// Ten restarts in a row, half of them by force, are no different from one.
func TestManyRestarts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for i := range 5 {
		n.run(fmt.Sprint("task-", i), obedient(20+i))
	}
	for i := range 10 {
		if i%2 == 0 {
			n.Kill()
		} else {
			n.Stop()
		}
		n.Run()
	}
	for i := range 5 {
		n.taskOf(fmt.Sprint("task-", i)).obey(uint32(20 + i))
	}
}

// Containers go on, under ours, that were started under stock, and the other
// way round, however often.
func TestUpgradeAndRollback(t *testing.T) {
	t.Parallel()
	needRoot(t)
	ours, stockBinary := kit.daemon, tool(t, kit.Stock)
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.run("from-ours-0", obedient(30))
			n.run("from-ours-1", obedient(31))
			n.create("created", obedient(32)).newTask()
			for i, binary := range []string{stockBinary, ours, stockBinary, ours} {
				end(n)
				n.Swap(binary)
				n.Run()
				// One that was there before the swap ends under the new
				// daemon, and one starts that lives on.
				id := fmt.Sprint("over-", i)
				n.run(id, obedient(40+i))
				if i < 2 {
					n.taskOf(fmt.Sprint("from-ours-", i)).obey(uint32(30 + i))
				}
				if i > 0 {
					n.taskOf(fmt.Sprint("over-", i-1)).obey(uint32(40 + i - 1))
				}
			}
			c := n.taskOf("created")
			require.Equal(t, containerd.Created, c.status())
			c.start()
			c.obey(32)
			n.taskOf("over-3").obey(43)
		})
	}
}

// The configured environment reaches every shim, as does the namespace's root.
func TestShimEnvironment(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(o *daemon.Options) { o.ShimEnv = []string{"SHIMYARD_SAMPLE=sample value"} })
	j := n.run("env", forever())
	env := readEnviron(t, n.shimPid(testNS, "env"))
	require.Contains(t, env, "SHIMYARD_SAMPLE=sample value")
	require.Contains(t, env, "GRPC_ADDRESS="+n.Address())
	require.Contains(t, env, "TTRPC_ADDRESS="+filepath.Join(n.Dir, "c.ttrpc"))
	j.finish()
}

// load gets a container by its id.
func (n *node) load(id string) containerd.Container {
	n.t.Helper()
	c, err := n.Client().LoadContainer(n.ctx, id)
	require.NoError(n.t, err)
	return c
}

// taskOf gets a task by its id.
func (n *node) taskOf(id string) *job {
	n.t.Helper()
	b := &box{Container: n.load(id), n: n, ctx: n.ctx}
	task, err := b.Task(n.ctx, nil)
	require.NoError(n.t, err, "the task of %s", id)
	return &job{Task: task, b: b}
}
