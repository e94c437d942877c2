// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Stock containerd takes over containers on warm shims: it lists, uses, and ends them, drains what their shims log, and
// can use their ids again. When we are back nothing of the warm shims stays.
func TestRollbackOfWarm(t *testing.T) {
	t.Parallel()
	needRoot(t)
	stock := tool(t, kit.Stock)
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.keepIdle(forGood)
			n.run("plain", obedient(7))
			two := n.run("with-exec", forever())
			two.exec("second", "sleep", "1000000")
			n.create("created", obedient(8)).newTask()
			n.run("gone", forever()).finish()
			for _, id := range []string{"plain", "with-exec", "created"} {
				require.True(t, isWarm(n.shimOf(testNS, id)), id)
			}
			end(n)
			if name == "stopped" {
				require.Empty(t, n.idleShims())
			}
			n.Swap(stock)
			n.Run()

			require.Len(t, n.listed(), 3)
			for _, id := range []string{"plain", "with-exec", "created"} {
				require.True(t, n.hasOpen(filepath.Join(n.Bundle(testNS, id), "log")), "nobody drains the log of %s",
					id)
			}
			two = n.taskOf("with-exec")
			p, err := two.LoadProcess(n.ctx, "second", nil)
			require.NoError(t, err)
			pe := waitFor(t, n.ctx, p)
			require.NoError(t, p.Kill(n.ctx, unix.SIGKILL))
			require.EqualValues(t, 137, pe.code())
			_, err = p.Delete(n.ctx)
			require.NoError(t, err)
			two.finish()
			n.taskOf("plain").obey(7)
			created := n.taskOf("created")
			require.Equal(t, containerd.Created, created.status())
			created.start()
			created.obey(8)
			// The ids again: one ends here, one goes back with us.
			n.run("plain", obedient(9)).obey(9)
			n.run("with-exec", obedient(10))

			end(n)
			n.Swap(kit.daemon)
			n.Reconfigure(withIdle(warmIdle))
			n.Run()
			n.taskOf("with-exec").obey(10)
			n.run("plain", obedient(11)).obey(11)
			n.awaitNoIdle()
		})
	}
}

// hasOpen tells whether the daemon has a file open.
func (n *node) hasOpen(path string) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.Pid())) // well-formed
	return slices.ContainsFunc(fds, func(fd string) bool {
		target, err := os.Readlink(fd)
		return err == nil && target == path
	})
}

// A pod's sandbox takes a warm shim and the pod's containers join it, over a restart too.
func TestPodOnWarmShim(t *testing.T) {
	t.Parallel()
	restarts := map[string]func(*node){"no restart": nil}
	for name, end := range ends {
		restarts[name] = end
	}
	for name, end := range restarts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newCRINode(t)
			n.keepIdle(forGood)
			n.runPod("zeroth").remove() // CRI adds to the daemon's PATH, and so to the shims', with its first pod
			known := pidsOf(n.awaitIdle(2))
			n.runPod("first").remove()
			idle := pidsOf(n.awaitIdle(len(known) + 2))

			p := n.runPod("second")
			s := n.shimOf(criNS, p.id)
			require.Contains(t, idle, s.Pid, "the sandbox has none of the idle shims")
			one := p.start("one", "sleep", "1000000")
			if end != nil {
				end(n)
				n.Run()
				p.rt = n.criClient()
			}
			two := p.start("two", "sleep", "1000000")
			require.Len(t, n.shims(), 1, "all are in one process")
			require.ElementsMatch(t, []string{criNS + "/" + p.id, criNS + "/" + one, criNS + "/" + two},
				n.shimOf(criNS, p.id).Serves)
			require.Equal(t, "yes\n", string(p.exec(one, "echo", "yes").Stdout))
			_, err := p.rt.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: one})
			require.NoError(t, err)
			_, err = p.rt.RemoveContainer(n.ctx, &cri.RemoveContainerRequest{ContainerId: one})
			require.NoError(t, err)
			require.Equal(t, s.Pid, n.shimPid(criNS, p.id), "the pod goes on")
			require.Equal(t, "yes\n", string(p.exec(two, "echo", "yes").Stdout))
			p.remove()
			require.Eventually(t, func() bool { return len(n.shims()) == 0 }, patience, tick,
				"a shim serves nobody and is not idle")
			again := n.runPod("third")
			again.start("three", "sleep", "1000000")
			again.remove()
			n.keepIdle(warmIdle)
		})
	}
}
