// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// shimPid finds the shim process that was started for an id. One that forks
// shows twice for a moment.
func (n *node) shimPid(ns, id string) int {
	n.t.Helper()
	var pids []int
	for end := time.Now().Add(patience); len(pids) != 1 && time.Now().Before(end); time.Sleep(tick) {
		pids = n.shimPids(ns, id)
	}
	require.Len(n.t, pids, 1, "shims of %s/%s among %v", ns, id, n.Processes())
	return pids[0]
}

func (n *node) shimPids(ns, id string) (pids []int) {
	for _, p := range n.Processes() {
		args := p.Args + " "
		if strings.Contains(args, "-namespace "+ns+" ") && strings.Contains(args, "-id "+id+" ") && !strings.HasSuffix(p.Args, "start") {
			pids = append(pids, p.Pid)
		}
	}
	return pids
}

func TestShimKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	log := n.watch()
	j := n.run("victim", forever())
	e := j.waiting()
	pid := j.Pid()
	require.NoError(t, unix.Kill(n.shimPid(testNS, j.ID()), unix.SIGKILL))

	require.EqualValues(t, 137, e.code())
	log.waitFor("/tasks/exit", j.ID())
	log.waitFor("/tasks/delete", j.ID())
	require.Equal(t, []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}, log.topics(j.ID()))
	events := log.of(j.ID())
	exited, deleted := events[2].exit, events[3].deleted
	require.Equal(t, pid, exited.Pid)
	require.Equal(t, j.ID(), exited.ID)
	require.EqualValues(t, 137, exited.ExitStatus)
	require.Equal(t, pid, deleted.Pid)
	require.EqualValues(t, 137, deleted.ExitStatus)
	require.Eventually(t, func() bool { return !runs(pid) }, patience, tick, "the container ends with its shim")

	require.Eventually(t, func() bool {
		_, err := j.Status(n.ctx)
		return errdefs.IsNotFound(err)
	}, patience, tick)
	_, err := n.Client().TaskService().Delete(n.ctx, &tasks.DeleteTaskRequest{ContainerID: j.ID()})
	require.ErrorIs(t, nativeError(err), errdefs.ErrNotFound)

	again := j.b.newTask()
	again.start()
	again.finish()
	require.Equal(t, 2, log.count("/tasks/exit", j.ID()), "nothing is told twice")
}

// The execs of a dead shim end before its task does.
func TestShimKilledWithExec(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	log := n.watch()
	j := n.run("victim", forever())
	p := j.exec("second", "sleep", "1000000")
	e, pe := j.waiting(), j.waiting(p)
	require.NoError(t, unix.Kill(n.shimPid(testNS, j.ID()), unix.SIGKILL))
	require.NoError(t, e.status().Error())
	require.NoError(t, pe.status().Error())
	log.waitForCount(2, "/tasks/exit", j.ID())
	log.waitFor("/tasks/delete", j.ID())
	var exits []string
	for _, event := range log.of(j.ID()) {
		if event.exit != nil {
			exits = append(exits, event.exit.ID)
		}
	}
	require.Equal(t, []string{"second", j.ID()}, exits)
	j.b.remove()
}

// What was told of an exit before the shim died is not told again.
func TestShimKilledAfterExit(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	log := n.watch()
	j := n.create("stopped", shell("exit 7")).newTask()
	e := j.wait()
	j.start()
	require.EqualValues(t, 7, e.code())
	log.waitFor("/tasks/exit", j.ID())
	require.NoError(t, unix.Kill(n.shimPid(testNS, j.ID()), unix.SIGKILL))
	log.waitFor("/tasks/delete", j.ID())
	events := log.of(j.ID())
	require.Equal(t, []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}, log.topics(j.ID()))
	require.EqualValues(t, 7, events[3].deleted.ExitStatus)
	require.Eventually(t, func() bool {
		_, err := j.Status(n.ctx)
		return errdefs.IsNotFound(err)
	}, patience, tick)
	j.b.remove()
}

// A shim that stalls is not a dead one.
func TestShimStalled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("stalled", forever())
	shim := n.shimPid(testNS, j.ID())
	e := j.wait()
	require.NoError(t, unix.Kill(shim, unix.SIGSTOP))
	list, err := n.Client().TaskService().List(n.ctx, &tasks.ListTasksRequest{})
	require.NoError(t, err)
	require.NoError(t, unix.Kill(shim, unix.SIGCONT))
	require.Len(t, list.Tasks, 1)
	require.True(t, runs(j.Pid()))
	require.Eventually(t, func() bool {
		s, err := j.Status(n.ctx)
		return err == nil && s.Status == containerd.Running
	}, patience, tick)
	require.NoError(t, j.Kill(n.ctx, unix.SIGKILL))
	require.EqualValues(t, 137, e.code())
	j.remove()
}

// A socket that somebody's cleaner removed is no death either.
func TestSocketRemoved(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("cleaned", forever())
	sockets, err := os.ReadDir(n.SocketDir())
	require.NoError(t, err)
	require.NotEmpty(t, sockets)
	for _, s := range sockets {
		require.NoError(t, os.Remove(n.SocketDir()+"/"+s.Name()))
	}
	n.Stop()
	n.Run()
	require.True(t, runs(j.Pid()), "a container is never killed on a guess")
	require.DirExists(t, n.Bundle(testNS, j.ID()))
	// Nobody can reach the shim any more; its death is what ends the task.
	require.NoError(t, unix.Kill(n.shimPid(testNS, j.ID()), unix.SIGKILL))
	require.Eventually(t, func() bool {
		_, err := n.Client().TaskService().Get(n.ctx, &tasks.GetRequest{ContainerID: j.ID()})
		return errdefs.IsNotFound(nativeError(err))
	}, patience, tick)
	j.b.reload().remove()
}

// runs reports whether the process is there and no zombie (which is for the
// machine's init to reap once the shim is dead).
func runs(pid uint32) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// readEnviron lists the environment of a process.
func readEnviron(t *testing.T, pid int) []string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	require.NoError(t, err)
	return strings.Split(string(data), "\x00")
}
