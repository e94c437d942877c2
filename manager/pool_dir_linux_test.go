// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// worksIn is the working directory of the process of a warm shim.
func (y *yard) worksIn(w *warmShim) string {
	y.Helper()
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", w.p.Verified().Pid))
	require.NoError(y, err)
	return cwd
}

// namesIn are the names in a directory.
func (y *yard) namesIn(dir string) []string {
	y.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(y, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestDirectoryOfAWarmShim: it is the bundle of one task after the other, and between them as it was when the shim had
// started.
func TestDirectoryOfAWarmShim(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	y.pooled("c1")
	w := y.warm("c1")
	y.spares(1)
	waiting := y.namesIn(y.path("state", "."+y.idle()[0]))
	for n := range 3 {
		id := fmt.Sprintf("c%d", n+1)
		if n > 0 {
			y.pooled(id)
			require.Same(t, w, y.warm(id))
		}
		require.Equal(t, y.bundle(id), y.worksIn(w))
		y.lentTo(id, w)
		config, err := os.ReadFile(filepath.Join(y.worksIn(w), "config.json"))
		require.NoError(t, err)
		require.Equal(t, y.runcOpts("sleep").Spec.GetValue(), config)
		require.NoError(t, os.WriteFile(filepath.Join(y.bundle(id), "of-the-task"), nil, 0o600))
		y.remove(id)
		y.removed(id)
		require.Equal(t, w.dir.Path, y.worksIn(w))
		require.ElementsMatch(t, waiting, y.namesIn(w.dir.Path))
		config, err = os.ReadFile(filepath.Join(w.dir.Path, "config.json"))
		require.NoError(t, err)
		require.Equal(t, "{}", string(config))
		info, err := os.Stat(w.dir.Path)
		require.NoError(t, err)
		require.Equal(t, os.ModeDir|0o700, info.Mode())
	}
}

// TestSharedDirectory: of the tasks in one shim the first has its directory, and after it the next that comes.
func TestSharedDirectory(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100, Share: 2})
	y.pooled("c1")
	w := y.warm("c1")
	y.pooled("c2")
	require.Same(t, w, y.warm("c2"))
	require.Equal(t, y.bundle("c1"), y.worksIn(w))
	fifo, err := os.Stat(filepath.Join(y.bundle("c1"), "log"))
	require.NoError(t, err)
	beside, err := os.Stat(filepath.Join(y.bundle("c2"), "log"))
	require.NoError(t, err)
	require.True(t, os.SameFile(fifo, beside), "the log is drained by whoever takes either bundle over")
	y.remove("c1")
	y.removed("c1")
	require.Equal(t, w.dir.Path, y.worksIn(w))
	y.pooled("c3")
	require.Same(t, w, y.warm("c3"))
	require.Equal(t, y.bundle("c3"), y.worksIn(w))
	y.remove("c2")
	y.removed("c2")
	require.Equal(t, y.bundle("c3"), y.worksIn(w))
	y.remove("c3")
	y.removed("c3")
	require.Equal(t, w.dir.Path, y.worksIn(w))
}

// TestSharedDirectoryOverARestart: the shim goes on with its other task in a directory that is there.
func TestSharedDirectoryOverARestart(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100, Share: 2})
	y.pooled("c1")
	y.pooled("c2")
	id := y.warm("c1").dir.ID
	y.crash()
	y.inState("c1", life.Running)
	w := y.warm("c1")
	require.Equal(t, id, w.dir.ID)
	y.remove("c1")
	y.removed("c1")
	require.Equal(t, w.dir.Path, y.worksIn(w))
	y.remove("c2")
	y.removed("c2")
	y.gone(id)
	// Or a stop of the daemon leaves them to its next start.
	y.until("all that wait are taken over", func() bool { return !y.filling() && len(y.idle()) == len(y.warmDirs()) })
}

// TestRootfsThatCannotBeEmptied keeps the id and what is in it. The shim, whose directory it is, serves nobody after
// that.
func TestRootfsThatCannotBeEmptied(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	task := y.pooled("c1")
	w := y.warm("c1")
	y.spares(1)
	precious := filepath.Join(y.bundle("c1"), "rootfs", "precious")
	require.NoError(t, os.WriteFile(precious, []byte("x"), 0o600))
	y.kill(task)
	_, err := y.tasks.Delete(y.ctx, "c1")
	require.NoError(t, err)
	setTimeout(t, shimproc.TimeoutCleanup, 100*time.Millisecond) // for which a create waits for the id
	_, err = y.tasks.Create(y.ctx, "c1", y.runcOpts("sleep"))
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	require.ErrorContains(t, err, "precious")
	setTimeout(t, shimproc.TimeoutCleanup, time.Minute)
	y.until("its shim is gone", func() bool { return len(y.daemons()) == 1 })
	require.True(t, y.distrusted())
	require.FileExists(t, precious)
	require.NoError(t, os.Remove(precious))
	y.removed("c1")
	y.gone(w.dir.ID)
	require.Len(t, y.warmDirs(), 1)
}

// TestReturnCutShort: the daemon was killed while the directory of a shim was made to wait again. It is made so by the
// next one.
func TestReturnCutShort(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(y *yard, dir string)
		left  int
	}{
		"returned": {left: 1, spoil: func(y *yard, dir string) {
			for _, name := range []string{"shimyard.json", "init.pid", "shim-binary-path"} {
				require.NoError(y, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
			}
			require.NoError(y, os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"root":{}}`), 0o600))
			require.NoError(y, os.Chmod(dir, 0o710))
			require.NoError(y, os.Symlink(y.path("root", testNamespace, "c1"), filepath.Join(dir, "work")))
			require.NoError(y, os.MkdirAll(y.path("root", testNamespace, "c1", "kept"), 0o700))
		}},
		"with a rootfs": {left: 1, spoil: func(y *yard, dir string) {
			require.NoError(y, os.Mkdir(filepath.Join(dir, "rootfs"), 0o711))
		}},
		"with a rootfs that holds something": {spoil: func(y *yard, dir string) {
			require.NoError(y, os.MkdirAll(filepath.Join(dir, "rootfs", "precious"), 0o711))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
			y.pooled("c1")
			w := y.warm("c1")
			y.spares(1)
			y.giveAllUp(y.takeAll())
			y.remove("c1")
			y.removed("c1")
			before := y.namesIn(w.dir.Path)
			y.crash(func() { c.spoil(y, w.dir.Path) })
			require.NoError(t, y.m.awaitReady(y.ctx))
			y.spares(c.left)
			require.NoDirExists(t, y.path("root", testNamespace, "c1"), "the work directory")
			if c.left == 0 {
				y.until("the shim is gone", func() bool { return len(y.daemons()) == 0 })
				require.DirExists(t, filepath.Join(w.dir.Path, "rootfs", "precious"))
				require.NoError(t, os.Remove(filepath.Join(w.dir.Path, "rootfs", "precious")))
				y.restart()
				y.noPool()
				return
			}
			require.ElementsMatch(t, before, y.namesIn(w.dir.Path))
			y.pooled("c2")
			require.Equal(t, w.dir.ID, y.warm("c2").dir.ID)
			y.remove("c2")
		})
	}
}

// TestLentDirectoryDamaged: a task whose bundle is a warm shim's directory is taken over, used and deleted, whatever
// became of the shim's record.
func TestLentDirectoryDamaged(t *testing.T) {
	for name, spoil := range map[string]func(y *yard, record string){
		"gone":  func(y *yard, record string) { require.NoError(y, os.Remove(record)) },
		"empty": func(y *yard, record string) { require.NoError(y, os.Truncate(record, 0)) },
		"of a later": func(y *yard, record string) {
			require.NoError(y, os.WriteFile(record, []byte(`{"version":99}`), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
			y.pooled("c1")
			id := y.warm("c1").dir.ID
			y.crash(func() { spoil(y, filepath.Join(y.bundle("c1"), "warm.json")) })
			y.inState("c1", life.Running)
			y.remove("c1")
			y.removed("c1")
			y.gone(id)
		})
	}
}

// TestPlaceIsTaken: what stands in the place of the bundle keeps the id, and costs no shim.
func TestPlaceIsTaken(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	y.pooled("c1")
	y.spares(1)
	idle, from := y.idle(), y.starts()
	require.NoError(t, os.MkdirAll(filepath.Join(y.bundle("c2"), "somebody's"), 0o700))
	for range 3 {
		_, err := y.tasks.Create(y.ctx, "c2", y.runcOpts("sleep"))
		require.ErrorContains(t, err, y.bundle("c2"))
	}
	require.Equal(t, idle, y.idle())
	require.Equal(t, from, y.starts())
	require.DirExists(t, filepath.Join(y.bundle("c2"), "somebody's"))
	require.NoError(t, os.RemoveAll(y.bundle("c2")))
	y.pooled("c2")
	require.Equal(t, idle[0], y.warm("c2").dir.ID)
	y.remove("c1")
	y.remove("c2")
}

// TestBundleGoneUnderAWarmShim: a shim whose directory was removed serves nobody after its task.
func TestBundleGoneUnderAWarmShim(t *testing.T) {
	setTimeout(t, shimproc.TimeoutShutdown, 5*time.Second)
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	task := y.pooled("c1")
	w := y.warm("c1")
	y.spares(1)
	y.kill(task)
	require.NoError(t, os.RemoveAll(y.bundle("c1")))
	_, err := y.tasks.Delete(y.ctx, "c1")
	require.NoError(t, err)
	y.removed("c1")
	y.gone(w.dir.ID)
	require.NotContains(t, y.idle(), w.dir.ID)
}

// TestDirectoryOfADeadShim that was given away and found dead just then: it is not made a bundle, since it is being
// removed.
func TestDirectoryOfADeadShim(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	y.pooled("c1")
	y.spares(1)
	id := y.idle()[0]
	var w *warmShim
	for _, o := range y.m.pool.account.Waiting() {
		if o.dir.ID == id {
			w = o
		}
	}
	y.killShim(id)
	y.until("it is found dead", w.p.IsOver)
	i := newInstance(y.m, y.tasks.layout, life.Task, testNamespace, "c2", life.Launching)
	i.describe(&createRequest{specFacts: specFacts{raw: []byte("{}")}}, w.spec.binary)
	require.ErrorIs(t, lendHome(i, w), shimproc.ErrDead)
	y.gone(id)
	require.NoDirExists(t, y.bundle("c2"))
	require.NoDirExists(t, y.path("root", testNamespace, "c2"))
	y.remove("c1")
}
