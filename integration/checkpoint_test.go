// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os/exec"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// needCRIU skips where no checkpoint can be taken, whoever manages the task.
func needCRIU(t *testing.T) {
	t.Helper()
	needRoot(t)
	path, err := exec.LookPath("criu")
	if err != nil {
		t.Skip("no criu here, so no checkpoints; the fake shim covers the path")
	}
	if out, err := exec.Command(path, "check").CombinedOutput(); err != nil {
		t.Skipf("criu does not work on this kernel, so no checkpoints; the fake shim covers the path: %s", out)
	}
}

func TestCheckpointAndRestore(t *testing.T) {
	t.Parallel()
	needCRIU(t)
	n := newNode(t)
	j := n.run("checkpoint", shell("echo kept >/kept; while [ ! -e /go ]; do sleep 0.02; done; exit 7"))
	j = j.checkpointAndRestore()
	out, code := j.execOutput("look", "cat", "/kept")
	require.EqualValues(t, 0, code)
	require.Equal(t, "kept", out)
	j.obey(7)
}

// A restored task has no pid before its start, and the daemon asks again then.
func TestCheckpointAndRestoreOfFake(t *testing.T) {
	t.Parallel()
	needRoot(t)
	shim := shimtest.Install(t, shimtest.Scenario{})
	n := newNode(t)
	j := n.run("checkpoint", spec("sleep"), fake(shim))
	pid := j.Pid()
	j = j.checkpointAndRestore()
	require.NotZero(t, j.Pid())
	require.NotEqual(t, pid, j.Pid())
	require.Equal(t, j.Pid(), n.taskOf("checkpoint").Pid())
	j.finish()
}

// checkpointAndRestore ends the task with a checkpoint and starts it from there.
func (j *job) checkpointAndRestore() *job {
	n, t := j.b.n, j.b.n.t
	t.Helper()
	e := j.wait()
	checkpoint, err := j.Checkpoint(n.ctx, func(i *containerd.CheckpointTaskInfo) error {
		i.Options = &options.CheckpointOptions{Exit: true}
		return nil
	})
	require.NoError(t, err)
	e.status()
	_, err = j.Delete(n.ctx)
	require.NoError(t, err)

	again, err := j.b.NewTask(n.ctx, cio.NullIO, containerd.WithTaskCheckpoint(checkpoint))
	require.NoError(t, err)
	j = &job{Task: again, b: j.b}
	j.start()
	require.Equal(t, containerd.Running, j.status())
	require.NoError(t, n.Client().ImageService().Delete(n.ctx, checkpoint.Name()))
	return j
}
