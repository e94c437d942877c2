// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestCloseEndsIdleShims, and never one that has a task.
func TestCloseEndsIdleShims(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		t.Run(map[bool]string{false: "all answer", true: "one is stopped"}[stopped], func(t *testing.T) {
			setTimeout(t, shimproc.TimeoutShutdown, time.Minute)
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 2, Reuse: 100})
			for _, id := range []string{"c1", "c2", "c3"} {
				y.pooled(id)
			}
			kept := y.warm("c1").dir.ID
			y.remove("c2")
			y.remove("c3")
			y.until("several are idle", func() bool { return !y.filling() && len(y.idle()) >= 3 })
			if stopped {
				y.stop(y.idle()[0])
			}
			y.halt() // fails where Close does not come to an end in time
			require.Equal(t, []string{y.bundle("c1")}, y.warmDirs())
			require.Len(t, y.daemons(), 1)
			require.Equal(t, kept, y.daemons()[0].ID)
			y.boot()
			y.inState("c1", life.Running)
			y.remove("c1")
			y.noPool()
			y.empty()
		})
	}
}

// TestCloseWhileASpareStarts: what the start comes to is ended with the others.
func TestCloseWhileASpareStarts(t *testing.T) {
	for _, at := range []shimtest.Stage{shimtest.BeforeFork, shimtest.AfterFork} {
		t.Run(string(at), func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
			y.pooled("c1")
			y.spares(1)
			y.shim.Update(func(s *shimtest.Scenario) { s.Start.HangAt = at })
			y.pooled("c2")
			y.shim.Await(shimtest.KindExec, "start", 3)
			y.halt()
			require.Len(t, y.warmDirs(), 2)
			y.shim.AwaitNoProcs(shimtest.RoleStart)
			require.Len(t, y.daemons(), 2)
			y.shim.Update(func(s *shimtest.Scenario) { s.Start.HangAt = "" })
			y.boot()
			y.inState("c1", life.Running)
			y.inState("c2", life.Running)
			y.remove("c1")
			y.remove("c2")
			y.noPool()
			y.empty()
		})
	}
}

// TestRestartWithWarmShims: a task is taken over as any other. Nobody knows whether all that its shim did went well, so
// that one ends with it.
func TestRestartWithWarmShims(t *testing.T) {
	for name, change := range map[string]func(y *yard){
		"as before": func(*yard) {},
		"no pool":   func(y *yard) { y.config.WarmLimit = 0 },
		"crash":     nil,
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100, Share: 2})
			before := make(map[string]runtime.State)
			for _, id := range []string{"c1", "c2"} {
				before[id] = y.state(y.pooled(id))
			}
			w := y.warm("c1")
			require.Same(t, w, y.warm("c2"))
			if change == nil {
				y.spares(1)
				y.crash()
			} else {
				y.restart(func() { change(y) })
			}
			for id, want := range before {
				y.inState(id, life.Running)
				require.Equal(t, want, y.state(mustGet(y, id)))
				e := y.exec(mustGet(y, id), "e1", "exit", "7")
				exit, err := e.Wait(y.ctx)
				require.NoError(t, err)
				require.Equal(t, uint32(7), exit.Status)
			}
			require.Same(t, y.instance("c1").process(), y.instance("c2").process())
			require.Equal(t, 1, y.connections("c1"))
			if y.config.WarmLimit > 0 {
				y.pooled("c3")
				require.NotEqual(t, w.dir.ID, y.warm("c3").dir.ID)
				y.remove("c3")
			}
			y.remove("c1")
			y.removed("c1")
			require.Equal(t, runtime.RunningStatus, y.state(mustGet(y, "c2")).Status)
			y.remove("c2")
			y.removed("c2")
			y.gone(w.dir.ID)
			require.NotContains(t, y.idle(), w.dir.ID)
		})
	}
}

// TestRestartDeletesAtOnce: a delete right after the start of the daemon does not bring the shim back into the pool.
func TestRestartDeletesAtOnce(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	for range 5 {
		task := y.pooled("c1")
		w := y.warm("c1")
		y.kill(task)
		y.spares(1)
		y.restart()
		_, err := y.tasks.Delete(y.ctx, "c1")
		require.NoError(t, err)
		y.removed("c1")
		y.gone(w.dir.ID)
		require.Empty(t, y.idle())
	}
}

// TestCrashWithIdleShims: they are taken over and serve the next create of their key, without an exec.
func TestCrashWithIdleShims(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{Log: []string{"level=debug msg=hello"}}, PoolConfig{Warm: 1, Reuse: 100})
	y.pooled("c1")
	y.remove("c1")
	y.spares(2)
	there, from := y.idle(), y.starts()
	y.crash()
	y.spares(2)
	require.ElementsMatch(t, there, y.idle())
	y.pooled("c2")
	require.Contains(t, there, y.warm("c2").dir.ID)
	require.True(t, y.warm("c2").p.Verified().Alive())
	y.remove("c2")
	y.spares(2)
	require.Equal(t, from, y.starts())
}

// TestCrashAndThenNoPool: idle shims are ended, whether they answer, are stopped or dead, and so are those above a
// lower ceiling.
func TestCrashAndThenNoPool(t *testing.T) {
	for name, c := range map[string]struct {
		meanwhile func(y *yard, ids []string)
		left      int
	}{
		"no pool": {meanwhile: func(y *yard, _ []string) { y.config.WarmLimit = 0 }},
		"not this one": {meanwhile: func(y *yard, _ []string) {
			y.config.Runtimes[plugins.RuntimeRuncV2] = RuntimeConfig{Path: y.shim.Path, Pool: &PoolConfig{}}
		}},
		"a lower ceiling": {meanwhile: func(y *yard, _ []string) { y.config.WarmLimit = 1 }, left: 1},
		"one is stopped":  {meanwhile: func(y *yard, ids []string) { y.stop(ids[0]) }, left: 1},
		"one is dead":     {meanwhile: func(y *yard, ids []string) { y.killShim(ids[0]) }, left: 1},
		"one is stopped, and its pid unknown": {left: 1, meanwhile: func(y *yard, ids []string) {
			y.stop(ids[0])
			y.warmRecord(ids[0], func(r *bundle.WarmRecord) { r.Shim = nil })
		}},
		"all sockets are gone": {meanwhile: func(y *yard, _ []string) {
			for _, path := range y.shim.Sockets() {
				require.NoError(y, os.Remove(path))
			}
			y.config.WarmLimit = 0
		}},
		"another boot": {meanwhile: func(y *yard, ids []string) {
			for _, id := range ids {
				y.killShim(id)
				y.warmRecord(id, func(r *bundle.WarmRecord) { r.BootID = "another" })
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			setTimeout(t, shimproc.TimeoutLoad, time.Second)
			y := coldPoolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
			y.boot()
			y.pooled("c1")
			y.remove("c1")
			y.spares(2)
			y.config.Deadlines = deadlines(150 * time.Millisecond)
			y.crash(func() { c.meanwhile(y, y.warmIDs()) })
			y.until("the others are ended", func() bool {
				return len(y.warmDirs()) == c.left &&
					len(y.daemons()) == c.left
			})
			y.until("those that are left can be used", func() bool { return len(y.idle()) == c.left })
			y.onlyIdle()
		})
	}
}

// warmIDs are the ids of all warm shims with a directory.
func (y *yard) warmIDs() (ids []string) {
	for _, dir := range y.warmDirs() {
		ids = append(ids, filepath.Base(dir)[1:])
	}
	return ids
}

// warmRecord changes the record of a warm shim on disk.
func (y *yard) warmRecord(id string, change func(*bundle.WarmRecord)) {
	y.Helper()
	all, err := bundle.Layout{State: y.path("state"), Root: y.path("root")}.ListWarm()
	require.NoError(y, err)
	for _, d := range all {
		if d.ID == id {
			r, err := d.ReadRecord()
			require.NoError(y, err)
			change(r)
			require.NoError(y, d.WriteRecord(r))
		}
	}
}

// onlyIdle is empty for a yard with idle shims.
func (y *yard) onlyIdle() {
	y.Helper()
	y.m.mu.Lock()
	defer y.m.mu.Unlock()
	require.Empty(y, y.m.instances)
	require.Len(y, y.m.procs.All(), len(y.idle()))
}

// TestWarmLaunchCutShort: the daemon was killed between two steps of a launch for nobody. What there is of it is ended
// and removed.
func TestWarmLaunchCutShort(t *testing.T) {
	for name, c := range map[string]struct {
		start    shimtest.StartFaults
		recorded bool
		launched bool
	}{
		"only a directory": {},
		"only a record":    {recorded: true},
		"helper runs":      {recorded: true, launched: true, start: shimtest.StartFaults{HangAt: shimtest.BeforeFork}},
		"daemon runs":      {recorded: true, launched: true, start: shimtest.StartFaults{HangAt: shimtest.AfterFork}},
		"answered":         {recorded: true, launched: true},
	} {
		for _, named := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, named: %v", name, named), func(t *testing.T) {
				y := poolYard(t, shimtest.Scenario{Generation: shimtest.Lenient, Start: c.start,
					Reply: shimtest.Reply{Format: shimtest.Protobuf}},
					PoolConfig{Warm: 1, Reuse: 100})
				require.NoError(t, y.m.awaitReady(y.ctx)) // or the restore of this daemon finds what is made here
				d, err := y.m.config.Tasks.layout().CreateWarm()
				require.NoError(t, err)
				token := shimclient.NewToken()
				if named {
					token = shimclient.NamedToken(d.ID)
				}
				if c.recorded {
					require.NoError(t, d.WriteRecord(&bundle.WarmRecord{
						Namespace: testNamespace, Runtime: plugins.RuntimeRuncV2, Key: "k", BootID: shimclient.BootID(),
						Launch: bundle.Launch{Token: token, Binary: y.shim.Path},
					}))
				}
				end := func() {}
				if c.launched {
					end = y.warmByHand(d, token, c.start.HangAt)
				}
				y.restart()
				y.noPool()
				y.shim.AwaitNoProcs()
				end()
				y.empty()
			})
		}
	}
}

// warmByHand runs the shim's `start` as a daemon would that is killed before it has read the answer.
func (y *yard) warmByHand(d *bundle.Warm, token string, hangs shimtest.Stage) (end func()) {
	y.Helper()
	logs, err := shimclient.OpenLog(d.LogPath(), nil)
	require.NoError(y, err)
	cmd := exec.Command(y.shim.Path, "-namespace", testNamespace, "-id", d.ID, "-address", y.config.GRPCAddress,
		"start")
	cmd.Dir = d.Path
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+y.events.path)
	if entry := shimclient.CarrierEnv(token); strings.HasPrefix(entry, shimclient.TokenEnv) {
		cmd.Env = append(cmd.Env, entry)
	}
	require.NoError(y, cmd.Start())
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		_ = cmd.Wait()
	}()
	y.shim.Await(shimtest.KindExec, "start", 1)
	if hangs != shimtest.BeforeFork {
		y.shim.Await(shimtest.KindExec, "daemon", 1)
	}
	if hangs == "" {
		<-reaped
	}
	return func() { <-reaped; _ = logs.Close() }
}

// TestWarmShimsThatAreLeftAlone: whoever may have something to lose that nobody can see. Their directories wait:
// another task had them.
func TestWarmShimsThatAreLeftAlone(t *testing.T) {
	for name, spoil := range map[string]func(y *yard, dir string){
		"the record cannot be read": func(y *yard, dir string) {
			require.NoError(y, os.WriteFile(filepath.Join(dir, "warm.json"), []byte("{"), 0o600))
		},
		"the record is of a newer version": func(y *yard, dir string) {
			require.NoError(y, os.WriteFile(filepath.Join(dir, "warm.json"),
				[]byte(`{"version":99,"namespace":"test"}`), 0o600))
		},
		"the bootstrap cannot be read": func(y *yard, dir string) {
			require.NoError(y, os.WriteFile(filepath.Join(dir, "bootstrap.json"), []byte("{"), 0o600))
		},
		"the record is gone": func(y *yard, dir string) {
			require.NoError(y,
				os.Remove(filepath.Join(dir, "warm.json")))
		},
		"a container without a bundle is in it": func(y *yard, _ string) {
			require.NoError(y, os.RemoveAll(y.bundle("c2")))
		},
		"and its pid is unknown": func(y *yard, dir string) {
			require.NoError(y, os.RemoveAll(y.bundle("c2")))
			y.warmRecord(filepath.Base(dir)[1:], func(r *bundle.WarmRecord) { r.Shim = nil })
		},
		"and it does not answer": func(y *yard, dir string) {
			require.NoError(y, os.RemoveAll(y.bundle("c2")))
			y.warmRecord(filepath.Base(dir)[1:], func(r *bundle.WarmRecord) { r.Shim = nil })
			y.stop(filepath.Base(dir)[1:])
		},
		"the bootstrap is gone": func(y *yard, dir string) {
			require.NoError(y, os.Remove(filepath.Join(dir, "bootstrap.json")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 0, Share: 2})
			y.untidy = true
			y.shim.AllowLeftovers()
			y.pooled("c1")
			y.pooled("c2")
			y.spares(1)
			w := y.warm("c1")
			require.Same(t, w, y.warm("c2"))
			y.remove("c1")
			y.removed("c1")
			idle := y.idle()[0]
			y.config.Deadlines = deadlines(150 * time.Millisecond)
			y.config.WarmLimit = 0 // what is idle is ended
			y.crash(func() { spoil(y, w.dir.Path) })
			y.gone(idle)
			y.until("nothing is under way", func() bool { return y.settledWarm(w.dir.ID) })
			require.DirExists(t, w.dir.Path)
			require.Equal(t, w.dir.ID, y.shim.Daemon(w.dir.ID).ID)
			require.Len(t, y.shim.Procs(shimtest.RoleGuest), 1)
			if y.instance("c2") != nil { // and its task can be used
				y.inState("c2", life.Running)
				y.kill(mustGet(y, "c2"))
				_, err := y.tasks.Delete(y.ctx, "c2")
				require.NoError(t, err)
			}
		})
	}
}

// settledWarm tells that the takeover of a warm shim is through, where one was begun.
func (y *yard) settledWarm(id string) bool {
	_, err := os.Stat(y.path("state", "."+id, "log"))
	return err == nil
}

// TestWarmCreateCutShort: the daemon was killed between the steps that give a shim to a task. The task was never
// created, so nobody is told.
func TestWarmCreateCutShort(t *testing.T) {
	for name, c := range map[string]struct {
		meanwhile func(y *yard, w *warmShim)
		idle      int
	}{
		"given": {meanwhile: func(*yard, *warmShim) {}},
		"assembled": {idle: 1, meanwhile: func(y *yard, w *warmShim) {
			require.NoError(y, os.Rename(y.bundle("c1"), w.dir.Path))
			require.NoError(y, os.Remove(y.link("c1")))
		}},
		"half assembled": {idle: 1, meanwhile: func(y *yard, w *warmShim) {
			require.NoError(y, os.Rename(y.bundle("c1"), w.dir.Path))
			require.NoError(y, os.Remove(y.link("c1")))
			require.NoError(y, os.Remove(filepath.Join(w.dir.Path, "work")))
			require.NoError(y, os.Remove(filepath.Join(w.dir.Path, "shimyard.json")))
		}},
		"given, and it died": {meanwhile: func(y *yard, w *warmShim) { y.killShim(w.dir.ID) }},
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
			i := newInstance(y.m, y.tasks.layout, life.Task, testNamespace, "c1", life.Launching)
			require.NoError(t, y.m.reserve(y.ctx, i))
			opts := y.runcOpts("sleep")
			r, err := readRequest(opts)
			require.NoError(t, err)
			b, err := y.m.resolver.Resolve(opts.Runtime)
			require.NoError(t, err)
			i.describe(r, b)
			_, err = y.m.shimFor(y.ctx, i, nil)
			require.NoError(t, err)
			w := y.warm("c1")
			y.spares(1)
			held := y.takeAll() // and ended, so that only one is left
			y.giveAllUp(held)
			y.crash(func() { c.meanwhile(y, w) })
			require.NoError(t, y.m.awaitReady(y.ctx))
			y.removed("c1")
			y.spares(c.idle)
			if c.idle == 0 {
				y.noPool()
				y.empty()
			}
			y.events.settle()
			require.Empty(t, y.events.of("c1"))
		})
	}
}
