// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package buildkit

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

// isClean tells that of the builds so far nothing is left: no task and no container in the daemon, no bundle on disk,
// no process of theirs, and no mount.
func (h *host) isClean(t *testing.T) {
	t.Helper()
	var left []string
	for end := time.Now().Add(procs.Patience); ; time.Sleep(procs.Tick) {
		if left = h.left(t); len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	t.Errorf("left behind: %s", strings.Join(left, "\n"))
	h.sweep(t) // the next test is another one
}

func (h *host) left(t *testing.T) []string {
	t.Helper()
	left := h.running(t)
	containers, err := h.client.Containers(context.Background())
	require.NoError(t, err)
	for _, c := range containers {
		left = append(left, "container "+c.ID())
	}
	// No match is an error of the pattern's, which is well-formed.
	bundles, _ := filepath.Glob("/run/containerd/io.containerd.runtime.v2.task/" + Namespace + "/*")
	for _, b := range bundles {
		left = append(left, "bundle "+b)
	}
	for _, pid := range steps() {
		left = append(left, "process "+strconv.Itoa(pid)+" "+command(pid))
	}
	return append(left, mounts(t)...)
}

// running are the tasks in the daemon.
func (h *host) running(t *testing.T) []string {
	t.Helper()
	resp, err := h.client.TaskService().List(context.Background(), &tasks.ListTasksRequest{})
	require.NoError(t, err)
	var list []string
	for _, task := range resp.Tasks {
		list = append(list, "task "+task.ID)
	}
	return list
}

// pid is that of the step that runs, the only one.
func (h *host) pid(t *testing.T) int {
	t.Helper()
	resp, err := h.client.TaskService().List(context.Background(), &tasks.ListTasksRequest{})
	require.NoError(t, err)
	require.Len(t, resp.Tasks, 1)
	require.NotZero(t, resp.Tasks[0].Pid)
	return int(resp.Tasks[0].Pid)
}

// sweep removes the containers that are left.
func (h *host) sweep(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	containers, err := h.client.Containers(ctx)
	require.NoError(t, err)
	for _, c := range containers {
		if task, err := c.Task(ctx, nil); err == nil {
			_, err = task.Delete(ctx, client.WithProcessKill)
			t.Logf("deleting the task %s: %v", c.ID(), err)
		}
		t.Logf("deleting the container %s: %v", c.ID(), c.Delete(ctx))
	}
}

// mounts are those that a container has on the machine.
func mounts(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var list []string
	for line := range strings.Lines(string(data)) {
		point := strings.Fields(line)[4]
		for _, of := range []string{"/run/containerd/io.containerd.runtime", "/var/lib/containerd/tmpmounts",
			"/tmp/containerd-mount", "/tmp/buildkit-mount"} {
			if strings.HasPrefix(point, of) {
				list = append(list, "mount "+point)
			}
		}
	}
	return list
}

// mark is in the environment of each step that a test looks for.
const mark = "STEP_OF_A_TEST=yes"

// steps are the pids of all processes that a marked step has left or has; none of those that have ended and are not
// reaped.
func steps() []int {
	var list []int
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, dir := range dirs {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		pid, _ := strconv.Atoi(filepath.Base(dir)) // it is a number
		if err == nil && strings.Contains("\x00"+string(env), "\x00"+mark+"\x00") {
			list = append(list, pid)
		}
	}
	return list
}

// command is that of a process, as a line.
func command(pid int) string {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return "(gone)"
	}
	return strings.ReplaceAll(strings.TrimRight(string(data), "\x00"), "\x00", " ")
}
