// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// poolYard is a yard whose runtime is kept warm.
func poolYard(t *testing.T, s shimtest.Scenario, pool PoolConfig, opts ...shimtest.InstallOption) *yard {
	t.Helper()
	y := coldPoolYard(t, s, pool, opts...)
	y.boot()
	return y
}

// coldPoolYard is a poolYard whose daemon is not started.
func coldPoolYard(t *testing.T, s shimtest.Scenario, pool PoolConfig, opts ...shimtest.InstallOption) *yard {
	t.Helper()
	y := coldYard(t, s, append(opts, shimtest.WithName("containerd-shim-runc-v2"))...)
	y.config.Runtimes[plugins.RuntimeRuncV2] = RuntimeConfig{Path: y.shim.Path, Pool: &pool}
	y.config.WarmLimit, y.config.WarmIdle = 32, time.Hour
	counted := scrape(t)
	before := counted.sum("warm_ended_total", "reason", warm.WhyDistrusted)
	y.distrusts = func() float64 { return counted.sum("warm_ended_total", "reason", warm.WhyDistrusted) - before }
	return y
}

// pooled creates a task of the runtime that is kept warm and starts it.
func (y *yard) pooled(id string, change ...func(*runtime.CreateOpts)) runtime.Task {
	y.Helper()
	o := y.runcOpts("sleep")
	for _, f := range change {
		f(&o)
	}
	task, err := y.tasks.Create(y.ctx, id, o)
	require.NoError(y, err)
	require.NoError(y, task.Start(y.ctx))
	return task
}

func (y *yard) starts() int { return y.shim.Count(shimtest.KindExec, "start") }

// idle are the ids of the shims that wait for a task.
func (y *yard) idle() (ids []string) {
	for _, w := range y.m.pool.account.Waiting() {
		ids = append(ids, w.dir.ID)
	}
	return ids
}

// spares waits until so many shims are idle and none is being started.
func (y *yard) spares(n int) {
	y.Helper()
	y.until("there are "+strconv.Itoa(n)+" idle shims", func() bool { return !y.filling() && len(y.idle()) == n })
}

// filling tells whether spares are being started.
func (y *yard) filling() bool { return y.m.pool.account.IsFilling() }

// aged lets no idle shim be trusted unasked any more, as if all had been idle for long.
func (y *yard) aged() { y.m.pool.trusted = 0 }

// warm is the pool's shim that serves a task; the test fails if it is none of the pool's.
func (y *yard) warm(id string) *warmShim {
	y.Helper()
	w := warmth(y.instance(id).process())
	require.NotNil(y, w, "%s is served by a shim of its own", id)
	return w
}

// link is the name by which clients dial the shim of an id.
func (y *yard) link(id string) string {
	sum := sha256.Sum256([]byte(filepath.Join(y.config.GRPCAddress, testNamespace, id)))
	return filepath.Join(y.config.SocketDir, hex.EncodeToString(sum[:]))
}

// warmDirs are the directories of warm shims: those that wait, and those that are bundles.
func (y *yard) warmDirs() []string {
	found, _ := filepath.Glob(y.path("state", "._*"))
	lent, _ := filepath.Glob(y.path("state", testNamespace, "*", "warm.json"))
	for _, record := range lent {
		found = append(found, filepath.Dir(record))
	}
	return found
}

// removed waits until nothing of a task is left, whatever its shim does.
func (y *yard) removed(ids ...string) {
	y.Helper()
	for _, id := range ids {
		y.until(id+" is gone", func() bool { return y.instance(id) == nil })
		require.NoDirExists(y, y.bundle(id))
		require.NoDirExists(y, y.path("root", testNamespace, id))
		_, err := filepath.EvalSymlinks(y.link(id))
		require.Error(y, err, "the link to the socket")
	}
}

// daemons are the shim processes that run.
func (y *yard) daemons() []shimtest.Proc { return y.shim.Procs(shimtest.RoleDaemon) }

// gone waits until a shim has ended and its directory is removed.
func (y *yard) gone(dirs ...string) {
	y.Helper()
	for _, id := range dirs {
		y.until("nothing of shim "+id+" is left", func() bool {
			return !slices.ContainsFunc(y.daemons(), func(p shimtest.Proc) bool { return p.ID == id }) &&
				!slices.Contains(y.warmDirs(), y.path("state", "."+id))
		})
	}
}

// noPool waits until no shim and no directory of one is left.
func (y *yard) noPool() {
	y.Helper()
	y.until("no warm shim is left", func() bool { return len(y.warmDirs()) == 0 && len(y.daemons()) == 0 })
	y.until("no socket of one is left", func() bool { return len(y.shim.Sockets()) == 0 })
	y.until("no process is known", func() bool { return len(y.m.procs.All()) == 0 })
}

// takeAll takes all idle shims from the shelves, as creates would.
func (y *yard) takeAll() (held []*warmShim) {
	for {
		waiting := y.m.pool.account.Waiting()
		if len(waiting) == 0 {
			return held
		}
		if e, _ := y.m.pool.account.Take(waiting[0].spec.key); e != nil {
			held = append(held, e.Shim)
		}
	}
}

func (y *yard) giveAllUp(held []*warmShim) {
	y.Helper()
	for _, w := range held {
		y.m.pool.account.GiveUp(w.entry)
		y.gone(w.dir.ID)
	}
}

// lentTo requires what a bundle and a socket directory say of a task that a warm shim serves.
func (y *yard) lentTo(id string, w *warmShim) {
	y.Helper()
	r := y.record(id)
	require.Equal(y, w.dir.ID, r.Warm)
	require.True(y, r.Joined)
	require.True(y, r.Launched)
	require.Nil(y, r.Launch)
	require.NotNil(y, r.Shim)
	require.Equal(y, w.p.Verified().Pid, r.Shim.Pid)
	boot, err := y.instance(id).bootstrap()
	require.NoError(y, err)
	require.Equal(y, w.reply.Address, boot.Address)
	require.Equal(y, filepath.Join(y.bundle(id), "log"), w.dir.LogPath(),
		"the log is drained by whoever takes the bundle over")
	require.NoDirExists(y, w.dir.Path)
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", w.p.Verified().Pid))
	require.NoError(y, err)
	require.Equal(y, y.bundle(id), cwd, "the shim works in the bundle")
	_, err = os.Stat(filepath.Join(y.bundle(id), "log"))
	require.NoError(y, err)
	to, err := filepath.EvalSymlinks(y.link(id))
	require.NoError(y, err)
	require.Equal(y, strings.TrimPrefix(w.reply.Address, "unix://"), to)
}

// distrusted tells whether a warm shim was retired since it did not do as it should.
func (y *yard) distrusted() bool { return y.distrusts() > 0 }

// endIdle ends all idle shims.
func (y *yard) endIdle() {
	for _, w := range y.takeAll() {
		y.m.pool.account.GiveUp(w.entry)
	}
}
