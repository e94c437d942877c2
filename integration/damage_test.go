// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// A cleaner of temporary files takes the socket of a shim: the connection goes
// on, and after a restart the container is there, if out of reach.
func TestSocketCleaned(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			j := n.run("cleaned", forever())
			pid := j.Pid()
			sockets, err := filepath.Glob(n.SocketDir() + "/*")
			require.NoError(t, err)
			require.NotEmpty(t, sockets)
			for _, s := range sockets {
				require.NoError(t, os.Remove(s))
			}
			_, code := j.execOutput("five", five...)
			require.EqualValues(t, 5, code, "the connection goes on")

			end(n)
			n.Run()
			n.stays("listed and running", func() bool {
				return n.listed()["cleaned"] == tasktypes.Status_RUNNING &&
					runs(pid)
			})
			j = n.taskOf("cleaned")
			require.Equal(t, pid, j.Pid())
			require.Equal(t, containerd.Running, j.status())
			_, err = j.Pids(n.ctx)
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			e := j.waiting()

			require.NoError(t, unix.Kill(n.shimPid(testNS, "cleaned"), unix.SIGKILL))
			require.EqualValues(t, 137, e.code(), "the shim's death is seen all the same")
			require.Eventually(t, func() bool {
				_, err := j.Status(n.ctx)
				return errdefs.IsNotFound(err)
			}, patience, tick)
			n.boxOf("cleaned").remove()
		})
	}
}

// A shim's binary that is moved or removed costs nobody a container.
func TestShimBinaryGone(t *testing.T) {
	t.Parallel()
	for name, elsewhere := range map[string]bool{"moved": true, "removed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needRoot(t)
			dirs := [2]string{t.TempDir(), t.TempDir()}
			file := filepath.Base(kit.shim)
			copyFile(t, kit.shim, filepath.Join(dirs[0], file))
			// and not the shim beside it
			require.NoError(t, os.Symlink(kit.runc, filepath.Join(dirs[1], filepath.Base(kit.runc))))
			n := newNode(t, func(o *daemon.Options) { o.Path = dirs[:] })
			n.run("orderly", obedient(7))
			n.run("killed", forever())
			n.Stop()
			if elsewhere {
				require.NoError(t, os.Rename(filepath.Join(dirs[0], file), filepath.Join(dirs[1], file)))
			} else {
				require.NoError(t, os.Remove(filepath.Join(dirs[0], file)))
			}
			n.Run()
			n.taskOf("orderly").obey(7)
			j := n.taskOf("killed")
			if !elsewhere {
				j.finish()
				return
			}
			e := j.waiting()
			require.NoError(t, unix.Kill(n.shimPid(testNS, "killed"), unix.SIGKILL))
			require.EqualValues(t, 137, e.code())
			n.boxOf("killed").awaitGone()
			n.boxOf("killed").remove()
			n.run("new", forever()).finish()
		})
	}
}

// A bundle that a cleaner of temporary files has removed: the shim's delete runs all the same, so that runc's state and
// the container end with the shim, and the id is free.
func TestBundleRemoved(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	log := n.watch()
	j := n.run("bare", forever())
	e, pid, shim := j.waiting(), j.Pid(), n.shimPid(testNS, "bare")
	n.removeBundle("bare")
	require.NoError(t, unix.Kill(shim, unix.SIGKILL))
	require.EqualValues(t, 137, e.code())
	log.waitFor("/tasks/delete", "bare")
	n.boxOf("bare").awaitGone()
	require.False(t, runs(pid), "the container ends with its shim")
	again := n.boxOf("bare").newTask() // which runc refuses while it has state of that id
	again.start()
	again.finish()
}

// A process of the host that works in the rootfs of a container whose shim is killed: the mount stays, and so does the
// id, since the next task would mount the same layers once more, beneath two writers.
func TestRootfsInUse(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("used", forever())
	e, rootfs := j.waiting(), filepath.Join(n.Bundle(testNS, "used"), "rootfs")
	user := exec.Command("sleep", "1000")
	user.Dir = rootfs
	require.NoError(t, user.Start())
	leave := sync.OnceFunc(func() {
		_ = user.Process.Kill()
		_ = user.Wait()
	})
	t.Cleanup(leave)
	require.NoError(t, unix.Kill(n.shimPid(testNS, "used"), unix.SIGKILL))
	require.EqualValues(t, 137, e.code(), "the exit is told all the same")

	refused := func(when string) {
		t.Helper()
		require.Eventually(t, func() bool { // a daemon that has just started has to find the shim dead first
			_, err := n.boxOf("used").NewTask(n.ctx, cio.NullIO)
			require.ErrorIs(t, err, errdefs.ErrAlreadyExists, when)
			return strings.Contains(err.Error(), fmt.Sprintf("process %d (cwd %s)", user.Process.Pid, rootfs))
		}, patience, tick, "the error does not name who uses the rootfs %s", when)
		require.FileExists(t, filepath.Join(rootfs, "bin", "sh"), when)
	}
	refused("at once")
	n.Stop()
	n.Run()
	refused("after a restart")
	leave()
	n.boxOf("used").awaitGone()
	again := n.boxOf("used").newTask()
	again.start()
	again.finish()
}

// removeBundle removes a bundle's directory under a running container.
func (n *node) removeBundle(id string) {
	n.t.Helper()
	bundle := n.Bundle(testNS, id)
	require.NoError(n.t, unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH))
	require.NoError(n.t, os.RemoveAll(bundle))
}

// boxOf gets a container by its id.
func (n *node) boxOf(id string) *box {
	n.t.Helper()
	return &box{Container: n.load(id), n: n, ctx: n.ctx}
}

// awaitGone waits until the task is unknown and its bundle removed.
func (b *box) awaitGone() {
	t := b.n.t
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := b.Task(b.ctx, nil)
		_, serr := os.Stat(b.n.Bundle(b.namespace(), b.ID()))
		return errdefs.IsNotFound(err) && os.IsNotExist(serr)
	}, patience, tick)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, data, 0o755))
}

// After a reboot the state directory is empty and the root directory is not.
func TestReboot(t *testing.T) {
	t.Parallel()
	needRoot(t)
	shim := shimtest.Install(t, shimtest.Scenario{Sandbox: true})
	n := newNode(t)
	n.run("one", forever())
	n.run("two", forever())
	n.sandbox("pod", shim)
	n.run("three", spec("sleep"), fake(shim), inSandbox("pod"))
	n.Kill()
	n.Reboot()
	shim.KillAll()
	n.Run()
	require.Empty(t, n.listed())
	for _, id := range []string{"one", "two", "three"} {
		n.boxOf(id).awaitGone()
	}
	for _, id := range []string{"one", "two"} {
		j := n.boxOf(id).newTask()
		j.start()
		j.finish()
	}
	n.boxOf("three").remove()
	sb, err := n.Client().LoadSandbox(n.ctx, "pod")
	require.NoError(t, err)
	require.NoError(t, sb.Shutdown(n.ctx))
}
