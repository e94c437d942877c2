// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/stretchr/testify/require"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// loud finds a log line at warning or above, in the form that containerd writes to a file.
var loud = regexp.MustCompile(`^time="[^"]*" level=(warning|error|fatal|panic) `)

// ofContainerd are lines at warning or above that are containerd's own, the daemon's or its shim's, by a part of each.
var ofContainerd = []string{
	// The file system of the test, the plugins that it leaves out, and its missing network.
	`msg="failed check for fsverity support"`,
	`id=io.containerd.podsandbox.controller.v1.podsandbox`,
	`msg="failed to load cni during init`,
	// What a runc shim says of itself when it ends while it watches for OOM on cgroup v1.
	`msg="cgroups: epoll wait" error=shutdown`,
	// A garbage collection that a stop of the daemon has overtaken.
	`msg="failed to finish collection context"`,
	// CRI on a container whose program is not there.
	`msg="Failed to pipe std`,
	`msg="StartContainer for `,
}

// complaints are the lines of the daemon's log at warning or above, without those of ofContainerd.
func (n *node) complaints() (found []string) {
	n.t.Helper()
	for line := range strings.Lines(n.Log()) {
		known := slices.ContainsFunc(ofContainerd, func(part string) bool { return strings.Contains(line, part) })
		if loud.MatchString(line) && !known {
			found = append(found, line)
		}
	}
	return found
}

// TestLogOfCleanRun: what goes as it should, a create of something that is not there included, is nothing that anybody
// has to look at.
func TestLogOfCleanRun(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			j := n.run("clean", shell("while [ ! -e /go ]; do sleep 0.1; done; exit 7"))
			out, code := j.execOutput("look", "echo", "hello")
			require.Equal(t, "hello", out)
			require.Zero(t, code)
			n.giveUpWait(j)

			b := n.create("missing", spec("/no/such/thing"))
			_, err := b.NewTask(n.ctx, cio.NullIO)
			require.ErrorContains(t, err, "/no/such/thing")
			b.noTask()
			b.remove()

			end(n)
			n.Run()
			j = n.taskOf("clean")
			require.Equal(t, containerd.Running, j.status())
			n.giveUpWait(j)
			e := j.wait()
			n.letExit("clean")
			require.EqualValues(t, 7, e.code())
			j.remove()
			n.run("killed", forever()).finish()
			require.Empty(t, strings.Join(n.complaints(), ""))
		})
	}
}

// giveUpWait waits for the task in vain, so that the shim answers what nobody waits for any more.
func (n *node) giveUpWait(j *job) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(j.b.ctx)
	before := n.Inside(waitFunction)
	ch, err := j.Wait(ctx)
	require.NoError(n.t, err)
	require.Eventually(n.t, func() bool { return n.Inside(waitFunction) > before }, patience, tick,
		"the daemon has no Wait")
	cancel()
	require.Error(n.t, (<-ch).Error())
	require.Eventually(n.t, func() bool { return n.Inside(waitFunction) == before }, patience, tick,
		"the daemon keeps the Wait")
}

// TestLogOfCleanPods is the same for pods.
func TestLogOfCleanPods(t *testing.T) {
	t.Parallel()
	n := newCRINode(t)
	p := n.runPod("pod")
	long := p.start("long", "sleep", "1000000")
	short := p.start("short", "sh", "-c", "exit 3")
	require.Eventually(t, func() bool { return p.status(short).State == cri.ContainerState_CONTAINER_EXITED }, patience,
		tick)
	require.Equal(t, "yes\n", string(p.exec(long, "echo", "yes").Stdout))
	_, err := p.tryStart("missing", nil, "/no/such/thing")
	require.ErrorContains(t, err, "/no/such/thing")
	n.Stop()
	n.Run()
	p.rt = n.criClient()
	require.Equal(t, cri.ContainerState_CONTAINER_RUNNING, p.status(long).State)
	require.Equal(t, "yes\n", string(p.exec(long, "echo", "yes").Stdout))
	_, err = p.rt.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: long})
	require.NoError(t, err)
	for _, id := range []string{long, short} {
		_, err = p.rt.RemoveContainer(n.ctx, &cri.RemoveContainerRequest{ContainerId: id})
		require.NoError(t, err)
	}
	p.remove()
	require.Empty(t, strings.Join(n.complaints(), ""))
}
