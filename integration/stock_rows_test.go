// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/runtime/restart"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// many runs so many containers and returns them; the shims of the first few are
// stalled.
func (s *side) many(count, stalled int) (jobs []*job, shims []int) {
	s.t.Helper()
	jobs = make([]*job, count)
	var g errgroup.Group
	g.SetLimit(4)
	for i := range jobs {
		g.Go(func() (err error) {
			jobs[i], err = s.tryRun(fmt.Sprint("many-", i), forever())
			return err
		})
	}
	require.NoError(s.t, g.Wait())
	for _, j := range jobs[:stalled] {
		shims = append(shims, s.shimPid(testNS, j.ID()))
	}
	for _, pid := range shims {
		require.NoError(s.t, unix.Kill(pid, unix.SIGSTOP))
	}
	return jobs, shims
}

// resume lets stalled shims go on; some may have been killed.
func resume(shims []int) {
	for _, pid := range shims {
		_ = unix.Kill(pid, unix.SIGCONT)
	}
}

func tryStalledOverRestart(s *side) (string, bool) {
	const count, stalled = 12, 3
	jobs, shims := s.many(count, stalled)
	s.Kill()
	s.Run()
	list, err := s.Client().TaskService().List(s.ctx, &tasks.ListTasksRequest{})
	require.NoError(s.t, err)
	resume(shims)
	alive, usable := 0, 0
	for _, j := range jobs {
		if runs(j.Pid()) {
			alive++
		}
		if s.settled(func() bool { return s.use(j.ID(), j.Pid(), five...) == nil }) {
			usable++
		}
	}
	return fmt.Sprintf("of %d containers with %d stalled shims %d are listed after the restart, %d live, %d can be used after SIGCONT; %d shims",
			count, stalled, len(list.Tasks), alive, usable, len(s.shims())), len(list.Tasks) == count && alive == count &&
			usable == count
}

func tryStalledList(s *side) (string, bool) {
	const count, stalled = 5, 3
	_, shims := s.many(count, stalled)
	defer resume(shims)
	start := time.Now()
	list, err := s.Client().TaskService().List(s.ctx, &tasks.ListTasksRequest{})
	require.NoError(s.t, err)
	took := time.Since(start).Round(time.Millisecond)
	running := 0
	for _, p := range list.Tasks {
		if p.Status == tasktypes.Status_RUNNING {
			running++
		}
	}
	return fmt.Sprintf("of %d running tasks with %d stalled shims %d are listed as running; it took %s", count, stalled,
		running, took), running == count
}

func tryStalledPod(s *side) (string, bool) {
	s.importImage(s.context(criNS))
	p := s.runPod("pod")
	id := p.start("long", "sleep", "1000000")
	shim := s.shimPid(criNS, p.id)
	require.NoError(s.t, unix.Kill(shim, unix.SIGSTOP))
	s.Kill()
	s.Run()
	p.rt = s.criClient()
	look := func() string {
		resp, err := p.rt.ContainerStatus(s.ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return err.Error()
		}
		return strings.TrimPrefix(resp.Status.State.String(), "CONTAINER_")
	}
	// CRI's own watch of the container has had time to fail, where it does.
	time.Sleep(3 * time.Second)
	during := look()
	pods, err := p.rt.ListPodSandbox(s.ctx, &cri.ListPodSandboxRequest{})
	require.NoError(s.t, err)
	ready := len(pods.Items) == 1 && pods.Items[0].State == cri.PodSandboxState_SANDBOX_READY
	resume([]int{shim})
	var out string
	usable := s.settled(func() bool {
		resp, err := p.rt.ExecSync(s.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", "yes"}})
		out = string(resp.GetStdout())
		return err == nil && out == "yes\n"
	})
	after := look()
	right := during == "RUNNING" && after == "RUNNING" && ready && usable
	if right {
		p.remove()
	}
	return fmt.Sprintf("the container is %s after the restart (pod ready: %t), %s after SIGCONT (can be used: %t)",
		during, ready, after, usable), right
}

func tryExitWhileDown(s *side) (string, bool) {
	j := s.run("ends", obedient(7))
	pidfd, err := unix.PidfdOpen(int(j.Pid()), 0)
	require.NoError(s.t, err)
	defer unix.Close(pidfd)
	s.Kill()
	require.NoError(s.t, os.WriteFile(filepath.Join(s.Bundle(testNS, "ends"), "rootfs", "go"), nil, 0o600))
	waitForPidfd(s.t, pidfd)
	s.Run()
	task, err := s.load("ends").Task(s.ctx, nil)
	if err != nil {
		return "the task: " + err.Error(), false
	}
	status, err := task.Status(s.ctx)
	if err != nil {
		return "its state: " + err.Error(), false
	}
	deleted, err := task.Delete(s.ctx)
	if err != nil {
		return "its deletion: " + err.Error(), false
	}
	return fmt.Sprintf("State says %s with %d, Delete says %d", status.Status, status.ExitStatus, deleted.ExitCode()),
		status.Status == containerd.Stopped && status.ExitStatus == 7 && deleted.ExitCode() == 7
}

func tryDeathAfterExit(s *side) (string, bool) {
	log := s.watch()
	j := s.create("stopped", shell("exit 7")).newTask()
	e := j.wait()
	j.start()
	require.EqualValues(s.t, 7, e.code())
	log.waitFor("/tasks/exit", "stopped")
	require.NoError(s.t, unix.Kill(s.shimPid(testNS, "stopped"), unix.SIGKILL))
	log.waitFor("/tasks/delete", "stopped")
	exits, deletes := log.count("/tasks/exit", "stopped"), log.count("/tasks/delete", "stopped")
	return fmt.Sprintf("%d exit events, %d delete events", exits, deletes), exits == 1 && deletes == 1
}

// tryStart makes a container and says how that went.
func tryStart(s *side) (string, bool) {
	j, err := s.tryRun("task", forever())
	if err != nil {
		return err.Error(), false
	}
	if err := s.use("task", j.Pid(), five...); err != nil {
		return "started; then " + err.Error(), false
	}
	return "starts and can be used", true
}

// tryFake is tryStart for a fake shim, and tells what is left of a failure.
func (s *side) tryFake(shim *shimtest.Shim) (string, bool) {
	j, err := s.tryRun("task", spec("sleep"), fake(shim))
	if err != nil {
		leak := ""
		if !s.settled(func() bool { return len(shim.Procs()) == 0 }) {
			leak = fmt.Sprintf("; %d processes are left", len(shim.Procs()))
		}
		return err.Error() + leak, false
	}
	if err := s.use("task", j.Pid(), "exit", "5"); err != nil {
		return "started; then " + err.Error(), false
	}
	return "starts and can be used", true
}

func tryRustAsync(s *side) (string, bool) {
	shim := s.install(shimtest.Scenario{Generation: shimtest.Legacy, Start: shimtest.StartFaults{LeakOnRefusal: true}})
	what, right := s.tryFake(shim)
	if procs := len(shim.Procs(shimtest.RoleDaemon)); right && procs != 1 {
		return fmt.Sprintf("%s, with %d shims", what, procs), false
	}
	return what, right
}

func tryGRPC(s *side) (string, bool) {
	return s.tryFake(s.install(shimtest.Scenario{Transport: "grpc", Socket: shimtest.Bare}))
}

func tryStderr(s *side) (string, bool) {
	return s.tryFake(s.install(shimtest.Scenario{Start: shimtest.StartFaults{Stderr: "WARNING: something is deprecated\n"}}))
}

func tryShimCgroup(s *side) (string, bool) {
	path := filepath.Join(s.Cgroup(), "shims")
	if !s.stock { // whose shim never gets there
		makeCgroup(s.t, path)
	}
	_, err := s.tryRun("options", forever(), withOptions(func(o *options.Options) { o.ShimCgroup = path }))
	require.NoError(s.t, err)
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.shimPid(testNS, "options")))
	require.NoError(s.t, err)
	in := strings.Contains(string(data), ":"+path+"\n")
	return fmt.Sprintf("starts; in the cgroup that the options name: %t", in), in
}

func tryNoPids(s *side) (string, bool) {
	shim := s.install(shimtest.Scenario{Rules: []shimtest.Rule{{Method: "Pids", Unsupported: true}}})
	j := s.run("task", spec("sleep"), fake(shim))
	s.Kill()
	s.Run()
	if err := s.use("task", j.Pid(), "exit", "5"); err != nil {
		return fmt.Sprintf("after the restart: %v; the container lives: %t", err, runs(j.Pid())), false
	}
	return "there and usable after the restart", true
}

func tryKilledAmidCreate(s *side) (string, bool) {
	shim := s.install(shimtest.Scenario{Start: shimtest.StartFaults{HangAt: shimtest.AfterFork}})
	b := s.create("task", spec("sleep"), fake(shim))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = b.NewTask(s.ctx, cio.NullIO) // the daemon is killed meanwhile
	}()
	require.Eventually(s.t, func() bool {
		return len(shim.Procs(shimtest.RoleDaemon)) == 1 && len(shim.Procs(shimtest.RoleStart)) == 1
	}, patience, tick)
	s.Kill()
	<-done
	shim.Update(func(c *shimtest.Scenario) { c.Start.HangAt = "" })
	s.Run()
	gone := s.settled(func() bool { return len(shim.Procs()) == 0 })
	return fmt.Sprintf("processes of the launch that are left: %d", len(shim.Procs())), gone
}

func withMonitor(*testing.T) []change {
	return []change{func(o *daemon.Options) {
		o.Plugins = []string{"restart"}
		o.Extra = "[plugins.'io.containerd.monitor.container.v1.restart']\ninterval = '1s'\n"
	}}
}

// tryMonitor stalls the shim of a container that the restart monitor keeps
// running, for some of its intervals and then over a restart.
func tryMonitor(s *side) (string, bool) {
	const intervals = 5 * time.Second
	// The monitor gets to know of it when it runs: else it would start it too, on a machine on which that takes longer
	// than an interval.
	j := s.run("kept", forever())
	keep := containerd.WithAdditionalContainerLabels(map[string]string{restart.StatusLabel: string(containerd.Running)})
	require.NoError(s.t, s.load("kept").Update(s.ctx, containerd.UpdateContainerOpts(keep)))
	shim := s.shimPid(testNS, "kept")
	var said []string
	right := true
	look := func(when string) {
		usable := s.settled(func() bool { return s.use("kept", j.Pid(), five...) == nil })
		one := s.settled(func() bool { return len(s.shims()) == 1 }) // a shim that forks shows twice for a moment
		right = right && usable && one
		said = append(said, fmt.Sprintf("%s it lives: %t, usable: %v, shims: %d", when, runs(j.Pid()), usable,
			len(s.shims())))
	}
	for _, when := range []string{"after a stall", "after a stall over a restart"} {
		require.NoError(s.t, unix.Kill(shim, unix.SIGSTOP))
		if strings.Contains(when, "restart") {
			s.Kill()
			s.Run()
		}
		time.Sleep(intervals)
		resume([]int{shim})
		require.Eventually(s.t, func() bool { // it answers again, or is another one
			task, err := s.load("kept").Task(s.ctx, nil)
			if err != nil {
				return false
			}
			_, err = task.Pids(s.ctx)
			return err == nil
		}, patience, tick)
		look(when)
		if !right {
			break
		}
	}
	if right {
		require.NoError(s.t, s.load("kept").Update(s.ctx, containerd.UpdateContainerOpts(restart.WithNoRestarts)))
		// A round of the monitor that read the label before ends with its daemon, and does not start again what is
		// deleted now.
		s.Kill()
		s.Run()
	}
	return strings.Join(said, "; "), right
}
