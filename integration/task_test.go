// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient"
)

func TestExitCodes(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, code := range []uint32{0, 3, 137} {
		j := n.create(fmt.Sprintf("exit-%d", code), shell(fmt.Sprintf("exit %d", code))).newTask()
		require.Equal(t, containerd.Created, j.status())
		e := j.wait()
		j.start()
		require.Equal(t, code, e.code())
		require.Equal(t, containerd.Stopped, j.status())
		require.Equal(t, code, j.remove().ExitCode())
	}
}

// The exit must not be lost where it comes before the answer to Start.
func TestExitAtOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	log := n.watch()
	for i := range 10 {
		j := n.create(fmt.Sprint("once-", i), shell("exit 5")).newTask()
		e := j.wait()
		j.start()
		require.EqualValues(t, 5, e.code())
		require.EqualValues(t, 5, j.remove().ExitCode())
		log.waitFor("/tasks/exit", j.ID())
		log.waitFor("/tasks/delete", j.ID())
		// The shim publishes from several goroutines: a delete right after the
		// exit may overtake it.
		require.ElementsMatch(t, []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"},
			log.topics(j.ID()))
	}
}

func TestDeleteOfCreated(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.create("created", forever()).newTask()
	require.NotZero(t, j.Pid())
	require.Equal(t, containerd.Created, j.status())
	// The client's own Delete wants it stopped.
	_, err := n.Client().TaskService().Delete(n.ctx, &tasks.DeleteTaskRequest{ContainerID: j.ID()})
	require.NoError(t, err)
	_, err = j.Status(n.ctx)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	j.b.remove()

	j = n.create("killed", forever()).newTask()
	e := j.wait()
	require.NoError(t, j.Kill(n.ctx, unix.SIGKILL))
	require.EqualValues(t, 137, e.code())
	j.remove()
}

func TestDeleteOfRunningRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("running", forever())
	_, err := n.Client().TaskService().Delete(n.ctx, &tasks.DeleteTaskRequest{ContainerID: j.ID()})
	require.ErrorContains(t, err, "cannot delete a running process")
	require.Equal(t, containerd.Running, j.status())
	j.finish()
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("paused", forever())
	require.NoError(t, j.Pause(n.ctx))
	require.Equal(t, containerd.Paused, j.status())
	require.NoError(t, j.Resume(n.ctx))
	require.Equal(t, containerd.Running, j.status())
	j.finish()
}

func TestUpdateOfResources(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("update", forever(), with(oci.WithMemoryLimit(64<<20)))
	require.Equal(t, "67108864", n.memoryLimit(j.ID()))
	limit := int64(48 << 20)
	require.NoError(t,
		j.Update(n.ctx, containerd.WithResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})))
	require.Equal(t, "50331648", n.memoryLimit(j.ID()))
	j.finish()
}

// memoryLimit reads the limit from the container's cgroup, of either version.
func (n *node) memoryLimit(id string) string {
	n.t.Helper()
	cg := n.cgroup(testNS, id)
	for _, file := range []string{
		filepath.Join("/sys/fs/cgroup/memory", cg, "memory.limit_in_bytes"),
		filepath.Join("/sys/fs/cgroup", cg, "memory.max"),
	} {
		if data, err := os.ReadFile(file); err == nil {
			return strings.TrimSpace(string(data))
		}
	}
	n.t.Fatalf("no memory limit in the cgroup %s", cg)
	return ""
}

func TestStats(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("stats", forever())
	metric, err := j.Metrics(n.ctx)
	require.NoError(t, err)
	require.Equal(t, j.ID(), metric.ID)
	data, err := typeurl.UnmarshalAny(metric.Data)
	require.NoError(t, err)
	switch m := data.(type) {
	case *stats1.Metrics:
		require.NotZero(t, m.GetMemory().GetUsage().GetUsage())
		require.EqualValues(t, 1, m.GetPids().GetCurrent())
	case *stats2.Metrics:
		require.NotZero(t, m.GetMemory().GetUsage())
		require.EqualValues(t, 1, m.GetPids().GetCurrent())
	default:
		t.Fatalf("metrics of an unknown type %T", data)
	}
	j.finish()
}

func TestPids(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("pids", forever())
	p := j.exec("second", "sleep", "1000000")
	infos, err := j.Pids(n.ctx)
	require.NoError(t, err)
	var pids []uint32
	for _, i := range infos {
		pids = append(pids, i.Pid)
	}
	require.ElementsMatch(t, []uint32{j.Pid(), p.Pid()}, pids)
	e := waitFor(t, n.ctx, p)
	require.NoError(t, p.Kill(n.ctx, unix.SIGKILL))
	require.EqualValues(t, 137, e.code())
	_, err = p.Delete(n.ctx)
	require.NoError(t, err)
	j.finish()
}

// In the host's pid namespace nothing ends the rest when init ends.
func TestKillAll(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("all", shell("sleep 1000000 & sleep 1000000 & wait"), with(oci.WithHostNamespace(specs.PIDNamespace)))
	p := j.exec("exec", "sleep", "1000000")
	ended := waitFor(t, n.ctx, p)
	e := j.wait()
	require.NoError(t, j.Kill(n.ctx, unix.SIGKILL, containerd.WithKillAll))
	require.EqualValues(t, 137, e.code())
	require.EqualValues(t, 137, ended.code())
	_, err := p.Delete(n.ctx)
	require.NoError(t, err)
	j.remove()
}

func TestKillOfStopped(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.create("stopped", spec("true")).newTask()
	e := j.wait()
	j.start()
	require.EqualValues(t, 0, e.code())
	require.ErrorIs(t, j.Kill(n.ctx, unix.SIGKILL), errdefs.ErrNotFound)
	require.EqualValues(t, 0, j.remove().ExitCode())
	require.ErrorIs(t, j.Kill(n.ctx, unix.SIGKILL), errdefs.ErrNotFound)
	_, err := j.Status(n.ctx)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

// Everybody who waits hears the same, also who asks late.
func TestWaiters(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.create("waiters", shell("exit 9")).newTask()
	waiters := []*exit{j.wait(), j.wait(), j.wait()}
	j.start()
	first := waiters[0].status()
	for _, w := range append(waiters[1:], j.wait()) {
		s := w.status()
		require.NoError(t, s.Error())
		require.EqualValues(t, 9, s.ExitCode())
		require.Equal(t, first.ExitTime(), s.ExitTime())
	}
	deleted := j.remove()
	require.Equal(t, first.ExitTime(), deleted.ExitTime())
}

func TestDuplicateRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("twice", forever())
	_, err := n.Client().TaskService().Create(n.ctx, &tasks.CreateTaskRequest{ContainerID: j.ID()})
	require.ErrorIs(t, nativeError(err), errdefs.ErrAlreadyExists)
	require.Equal(t, containerd.Running, j.status())
	j.finish()
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	const many = 30
	n := newNode(t)
	jobs := make([]*job, many)
	var g errgroup.Group
	for i := range jobs {
		g.Go(func() (err error) {
			jobs[i], err = n.tryRun(fmt.Sprint("many-", i),
				shell(fmt.Sprintf("trap 'exit %d' TERM; sleep 1000000 & wait", 100+i)))
			return err
		})
	}
	require.NoError(t, g.Wait())
	list, err := n.Client().TaskService().List(n.ctx, &tasks.ListTasksRequest{})
	require.NoError(t, err)
	require.Len(t, list.Tasks, many)

	for _, j := range jobs {
		require.Eventually(t, func() bool { return traps(t, j.Pid(), unix.SIGTERM) }, patience, tick)
	}
	codes := make([]uint32, many)
	for i, j := range jobs {
		g.Go(func() error {
			ch, err := j.Wait(n.ctx)
			if err != nil {
				return err
			}
			if err := j.Kill(n.ctx, unix.SIGTERM); err != nil {
				return err
			}
			s := <-ch
			codes[i] = s.ExitCode()
			if s.Error() != nil {
				return s.Error()
			}
			if _, err := j.Delete(n.ctx); err != nil {
				return err
			}
			return j.b.Delete(n.ctx, containerd.WithSnapshotCleanup)
		})
	}
	require.NoError(t, g.Wait())
	for i, code := range codes {
		require.EqualValues(t, 100+i, code)
	}
}

// traps tells whether a shell catches a signal. A runtime written in Go, which is about to become the shell, catches
// nearly all.
func traps(t *testing.T, pid uint32, sig unix.Signal) bool {
	t.Helper()
	id, err := shimclient.LookupProcess(int(pid))
	require.NoError(t, err)
	isGo, err := id.Catches(unix.SIGURG) // asked first: it may become the shell at any time
	require.NoError(t, err)
	caught, err := id.Catches(sig)
	require.NoError(t, err)
	return caught && !isGo
}

func TestReuseOfID(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	b := n.create("again", forever())
	var last uint32
	for range 15 {
		j := b.newTask()
		require.NotEqual(t, last, j.Pid())
		last = j.Pid()
		j.start()
		_, err := j.Delete(n.ctx, containerd.WithProcessKill)
		require.NoError(t, err)
	}
	b.remove()
}

func TestSameIDInTwoNamespaces(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	other := n.context("other")
	n.importImage(other)
	one := n.run("same", forever())
	two := n.run("same", forever(), inNamespace("other"))
	require.NotEqual(t, one.Pid(), two.Pid())
	list, err := n.Client().TaskService().List(other, &tasks.ListTasksRequest{})
	require.NoError(t, err)
	require.Len(t, list.Tasks, 1)
	require.Equal(t, two.Pid(), list.Tasks[0].Pid)
	one.finish()
	require.Equal(t, containerd.Running, two.status())
	two.finish()
}
