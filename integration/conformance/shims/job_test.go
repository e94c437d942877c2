// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

// job is a container with a running task.
type job struct {
	n    *node
	id   string
	dir  string // of the node, in the container /node
	task client.Task
}

// obedient exits with 7 on SIGTERM, and says so in a directory of the node.
var obedient = []string{"sh", "-c", "trap 'exit 7' TERM; touch /node/ready; while true; do sleep 0.1; done"}

// run runs the command. What is left of it when the test ends is removed.
func (n *node) run(id string, command []string, change ...func(*options.Options)) *job {
	n.t.Helper()
	ctx, cancel := n.within()
	defer cancel()
	img, err := n.client.GetImage(ctx, image)
	require.NoError(n.t, err)
	o := &options.Options{}
	for _, c := range change {
		c(o)
	}
	j := &job{n: n, id: id, dir: n.t.TempDir()}
	c, err := n.client.NewContainer(ctx, id, client.WithNewSnapshot(id, img),
		client.WithRuntime("io.containerd.runc.v2", o),
		client.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs(command...), oci.WithMounts([]specs.Mount{
			{Source: j.dir, Destination: "/node", Type: "bind", Options: []string{"rbind", "rw"}},
		})))
	require.NoError(n.t, err)
	n.t.Cleanup(j.remove)
	j.task, err = c.NewTask(ctx, cio.NullIO)
	require.NoError(n.t, err)
	require.NoError(n.t, j.task.Start(ctx))
	return j
}

// obedient runs such a container and waits until it would obey.
func (n *node) obedient(id string, change ...func(*options.Options)) *job {
	n.t.Helper()
	j := n.run(id, obedient, change...)
	procs.Eventually(n.t, procs.Patience, func() bool {
		_, err := os.Stat(filepath.Join(j.dir, "ready"))
		return err == nil
	})
	return j
}

// code is what the shim makes of an exit code.
func (n *node) code(code int) int {
	if n.g.NoCodes {
		return 0
	}
	return code
}

// pid is that of the container's first process.
func (j *job) pid() int { return int(j.task.Pid()) }

// again finds the task after a restart of the daemon. It must be the same.
func (j *job) again() {
	j.n.t.Helper()
	ctx, cancel := j.n.within()
	defer cancel()
	c, err := j.n.client.LoadContainer(ctx, j.id)
	require.NoError(j.n.t, err)
	pid := j.pid()
	j.task, err = c.Task(ctx, nil)
	require.NoError(j.n.t, err)
	require.Equal(j.n.t, pid, j.pid())
}

func (j *job) status() client.Status {
	j.n.t.Helper()
	ctx, cancel := j.n.within()
	defer cancel()
	s, err := j.task.Status(ctx)
	require.NoError(j.n.t, err)
	return s
}

// exec runs a command in the container and returns its exit code and what it wrote.
func (j *job) exec(id string, command ...string) (int, string) {
	j.n.t.Helper()
	ctx, cancel := j.n.within()
	defer cancel()
	var out, messages bytes.Buffer
	p, err := j.task.Exec(ctx, id, &specs.Process{Args: command, Cwd: "/", Env: []string{"PATH=/bin"}},
		cio.NewCreator(cio.WithStreams(strings.NewReader(""), &out, &messages)))
	require.NoError(j.n.t, err)
	wait, err := p.Wait(ctx)
	require.NoError(j.n.t, err)
	require.NoError(j.n.t, p.Start(ctx))
	exit := <-wait
	require.NoError(j.n.t, exit.Error())
	p.IO().Wait() // the output, which Delete would cut off
	_, err = p.Delete(ctx)
	require.NoError(j.n.t, err)
	return int(exit.ExitCode()), strings.TrimSpace(out.String())
}

// end sends the signal, unless it is 0, waits for the exit, deletes the task, and returns the exit code, on which Wait
// and Delete agree.
func (j *job) end(sig syscall.Signal) int {
	j.n.t.Helper()
	ctx, cancel := j.n.within()
	defer cancel()
	wait, err := j.task.Wait(ctx)
	require.NoError(j.n.t, err)
	if sig != 0 {
		require.NoError(j.n.t, j.task.Kill(ctx, sig))
	}
	exit := <-wait
	require.NoError(j.n.t, exit.Error())
	deleted, err := j.task.Delete(ctx)
	require.NoError(j.n.t, err)
	require.Equal(j.n.t, exit.ExitCode(), deleted.ExitCode())
	return int(exit.ExitCode())
}

// remove removes whatever is left of it.
func (j *job) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), procs.Patience)
	defer cancel()
	c, err := j.n.client.LoadContainer(ctx, j.id)
	if err != nil {
		return // the test may have ended while the daemon is down, which it tells
	}
	if task, err := c.Task(ctx, nil); err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
		if err != nil && !errdefs.IsNotFound(err) {
			j.n.t.Errorf("cannot delete the task %s: %v", j.id, err)
		}
	}
	if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		j.n.t.Errorf("cannot delete the container %s: %v", j.id, err)
	}
}
