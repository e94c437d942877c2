// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestDeath of a shim with a running task and an exec: all that its clients have to see of it.
func TestDeath(t *testing.T) {
	y := newYard(t, shimtest.Scenario{TraceEnv: []string{"YARD"},
		Delete: shimtest.DeleteFaults{Stderr: "warning: old kernel\n"}})
	opts := withMount(y.opts("sleep"))
	task, err := y.tasks.Create(y.ctx, "c1", opts)
	require.NoError(t, err)
	require.NoError(t, task.Start(y.ctx))
	pid, err := task.PID(y.ctx)
	require.NoError(t, err)
	p1, p2 := y.exec(task, "e1", "sleep"), y.exec(task, "e2", "sleep")
	done := y.exec(task, "e3", "exit", "3")
	_, err = done.Wait(y.ctx)
	require.NoError(t, err)
	y.events.await("c1", exitTopic, 1)
	execPid := y.state(p1).Pid
	init, exec := y.waiting(task), y.waiting(p2)

	y.killShim("c1")
	w := <-init
	require.NoError(t, w.err)
	require.Equal(t, uint32(137), w.exit.Status, "as `shim delete` said")
	require.Equal(t, pid, w.exit.Pid)
	w = <-exec
	require.NoError(t, w.err)
	require.Equal(t, uint32(255), w.exit.Status)

	heard := y.exitsOf("c1")
	require.Equal(t, []string{"e3", "e1", "e2", "c1", ""}, idsOf(heard), "execs first, each once")
	require.Equal(t, execPid, heard[1].Pid)
	require.Equal(t, uint32(255), heard[1].Status)
	require.Equal(t, told{Topic: exitTopic, Container: "c1", ID: "c1", Pid: pid, Status: 137, At: heard[3].At},
		heard[3])
	require.Equal(t, told{Topic: deleteTopic, Container: "c1", Pid: pid, Status: 137, At: heard[3].At}, heard[4])
	y.wasDeleted("c1", task)
	e := y.shim.Find(shimtest.KindExec, "delete")
	require.Len(t, e, 1)
	require.Contains(t, e[0].Env, "YARD=1")
	require.Contains(t, e[0].Env, "TTRPC_ADDRESS="+y.events.path)
	require.Equal(t, []string{"c1"}, y.mounts.deactivations())

	y.create("c1", "sleep")
	y.remove("c1")
	y.empty()
}

// wasDeleted requires that nothing is known of a task any more.
func (y *yard) wasDeleted(id string, task runtime.Task) {
	y.Helper()
	_, err := y.tasks.Get(y.ctx, id)
	require.True(y, errdefs.IsNotFound(err), "Get: %v", err)
	_, err = task.State(y.ctx)
	require.True(y, errdefs.IsNotFound(err), "State: %v", err)
	require.True(y, errdefs.IsNotFound(task.Kill(y.ctx, 9, true)), "Kill")
	require.True(y, errdefs.IsNotFound(task.Start(y.ctx)), "Start")
	_, err = task.Pids(y.ctx)
	require.True(y, errdefs.IsNotFound(err), "Pids: %v", err)
	_, err = y.tasks.Delete(y.ctx, id)
	require.True(y, errdefs.IsNotFound(err), "Delete: %v", err)
	tasks, err := y.tasks.Tasks(y.ctx, false)
	require.NoError(y, err)
	require.Empty(y, tasks)
}

// TestDeathAfterTheExit: what the shim has told is not told again, and the deletion says the same.
func TestDeathAfterTheExit(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	task := y.run("c1", "exit", "7")
	exit, err := task.Wait(y.ctx)
	require.NoError(t, err)
	y.events.await("c1", exitTopic, 1)
	y.killShim("c1")
	heard := y.exitsOf("c1")
	require.Equal(t, []string{"c1", ""}, idsOf(heard))
	require.Equal(t, uint32(7), heard[1].Status)
	require.Equal(t, exit.Pid, heard[1].Pid)
	require.True(t, heard[0].At.Equal(heard[1].At))
	y.wasDeleted("c1", task)
}

// TestDeathBeforeTheEvent: the exit that the shim wrote down but never told is told with its status, and is what State
// said.
func TestDeathBeforeTheEvent(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Events: []shimtest.EventRule{{Topic: exitTopic, Drop: true}}})
	task := y.run("c1", "exit", "7")
	exit, err := task.Wait(y.ctx)
	require.NoError(t, err)
	y.killShim("c1")
	heard := y.exitsOf("c1")
	require.Equal(t, []string{"c1", ""}, idsOf(heard))
	require.Equal(t, uint32(7), heard[0].Status)
	require.True(t, heard[0].At.Equal(exit.Timestamp), "%v, %v", heard[0].At, exit.Timestamp)
}

// TestDeathOfWhatOnlyDeleteKnows: nobody asked and nobody was told; `shim delete` reads it from exit.json.
func TestDeathOfWhatOnlyDeleteKnows(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Events: []shimtest.EventRule{{Topic: exitTopic, Drop: true}}})
	y.run("c1", "exit", "7")
	y.until("it has exited", func() bool { _, err := os.Stat(y.bundle("c1") + "/exit.json"); return err == nil })
	y.killShim("c1")
	heard := y.exitsOf("c1")
	require.Equal(t, []string{"c1", ""}, idsOf(heard))
	require.Equal(t, uint32(7), heard[0].Status)
}

// TestDeathWithoutAnAnswer: where `shim delete` never says, the status is 255; the container is ended and all is
// cleaned up in the end.
func TestDeathWithoutAnAnswer(t *testing.T) {
	for name, f := range map[string]shimtest.DeleteFaults{"fails": {Fail: -1}, "garbage": {Garbage: true}} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{Delete: f})
			task := y.run("c1", "sleep")
			pid, _ := task.PID(y.ctx)
			w := y.waiting(task)
			y.killShim("c1")
			y.shim.AwaitNoProcs(shimtest.RoleGuest)
			require.Equal(t, uint32(255), (<-w).exit.Status)
			y.events.await("c1", deleteTopic, 1)
			_, err := y.tasks.Get(y.ctx, "c1")
			require.True(t, errdefs.IsNotFound(err), "%v", err)
			y.shim.Update(func(s *shimtest.Scenario) { s.Delete = shimtest.DeleteFaults{} })
			heard := y.exitsOf("c1")
			require.Equal(t, []string{"c1", ""}, idsOf(heard))
			require.Equal(t, pid, heard[0].Pid)
			require.Equal(t, uint32(255), heard[1].Status)
		})
	}
}

// TestDeathWithALateAnswer: one failed attempt does not make an exit unknown that a later one, or the file that the
// shim wrote, knows.
func TestDeathWithALateAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		command []string
		fails   int
		want    uint32
	}{
		"a later attempt says":           {[]string{"sleep"}, 1, 137},
		"the last attempt but one says":  {[]string{"sleep"}, 2, 137},
		"the shim wrote it down":         {[]string{"exit", "7"}, 1, 7},
		"the shim wrote it down, always": {[]string{"exit", "7"}, -1, 7},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{
				Delete: shimtest.DeleteFaults{Fail: c.fails},
				Events: []shimtest.EventRule{{Topic: exitTopic, Drop: true}},
			})
			task := y.run("c1", c.command...)
			pid, err := task.PID(y.ctx)
			require.NoError(t, err)
			if c.want == 7 {
				y.until("it has exited", func() bool {
					_,
						err := os.Stat(y.bundle("c1") + "/exit.json")
					return err == nil
				})
			}
			y.killShim("c1")
			y.events.await("c1", deleteTopic, 1)
			y.shim.Update(func(s *shimtest.Scenario) { s.Delete = shimtest.DeleteFaults{} })
			heard := y.exitsOf("c1")
			require.Equal(t, []string{"c1", ""}, idsOf(heard))
			require.Equal(t, []uint32{c.want, c.want}, []uint32{heard[0].Status, heard[1].Status})
			require.Equal(t, pid, heard[0].Pid)
		})
	}
}

// TestExitFileOfAnotherProcess: a file that names another pid is not the exit of this container.
func TestExitFileOfAnotherProcess(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Delete: shimtest.DeleteFaults{Garbage: true}})
	y.run("c1", "sleep")
	file := `{"Timestamp":"2026-01-02T03:04:05Z","Pid":1,"Status":3}`
	require.NoError(t, os.WriteFile(y.bundle("c1")+"/exit.json", []byte(file), 0o600))
	y.killShim("c1")
	require.Equal(t, uint32(255), y.exitsOf("c1")[0].Status)
}

// TestDeathThatLeavesRuntimeState: the OCI runtime refuses a container of whose id it keeps state, so the id stays
// reserved until it does not, whether `shim delete` fails or thinks that it has succeeded. Where the state is, the
// options tell: of the bundle, else of the store.
func TestDeathThatLeavesRuntimeState(t *testing.T) {
	for name, c := range map[string]struct {
		damage string // what becomes of options.json; "": it is as the shim wrote it
		binary bool   // is gone
	}{
		"delete leaves it": {}, "options damaged": {damage: "{"}, "options gone": {damage: "gone"},
		"binary gone": {binary: true},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			y.run("c1", "sleep")
			root := y.path("runc")
			state := filepath.Join(root, testNamespace, "c1")
			require.NoError(t, os.MkdirAll(state, 0o700))
			y.store.add("c1", y.shim.Path, anyOf(t, &runcoptions.Options{Root: root}))
			options := filepath.Join(y.bundle("c1"), "options.json")
			content := fmt.Sprintf(`{"root":%q}`, root)
			if c.damage != "" {
				content = c.damage
			}
			if c.damage != "gone" {
				require.NoError(t, os.WriteFile(options, []byte(content), 0o600))
			}
			if c.binary {
				t.Setenv("PATH", "")
				proc := y.shim.Daemon("c1")
				require.NoError(t, os.Rename(y.shim.Path, y.shim.Path+".away"))
				require.NoError(t, proc.Kill())
			} else {
				y.killShim("c1")
			}
			y.events.await("c1", deleteTopic, 1)
			i := y.inState("c1", life.Dead)
			y.until("the state is found", func() bool { _, left := i.status(); return left != nil })
			_, left := i.status()
			require.ErrorContains(t, left, state)
			require.DirExists(t, y.bundle("c1"))
			if c.damage != "" {
				repaired, err := os.ReadFile(options)
				require.NoError(t, err)
				require.JSONEq(t, fmt.Sprintf(`{"root":%q}`, root), string(repaired))
			}
			require.NoError(t, os.RemoveAll(state))
			require.Equal(t, []string{"c1", ""}, idsOf(y.exitsOf("c1")))
		})
	}
}

// TestDeathWithoutABinary: a binary that is gone keeps nothing from being told and cleaned.
func TestDeathWithoutABinary(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	require.NoError(t, os.Rename(y.shim.Path, y.shim.Path+".away"))
	for _, p := range y.shim.Procs() {
		if p.Role != shimtest.RoleGuest {
			require.NoError(t, p.Kill())
		}
	}
	heard := y.exitsOf("c1")
	require.Equal(t, []string{"c1", ""}, idsOf(heard))
	require.Equal(t, uint32(255), heard[0].Status)
	y.shim.AwaitNoProcs()
}

// TestDeathByANamesake: a binary that clients name by path, and that is gone, is stood in for by one of the same name
// in PATH.
func TestDeathByANamesake(t *testing.T) {
	y := newYard(t, shimtest.Scenario{}, shimtest.WithScript())
	y.run("c1", "sleep")
	other := filepath.Join(y.shim.Home, "other")
	require.NoError(t, os.Mkdir(other, 0o700))
	t.Setenv("PATH", other)
	proc := y.shim.Daemon("c1")
	require.NoError(t, os.Rename(y.shim.Path, filepath.Join(other, filepath.Base(y.shim.Path))))
	require.NoError(t, proc.Kill())
	heard := y.exitsOf("c1")
	require.Equal(t, []string{"c1", ""}, idsOf(heard))
	require.Equal(t, uint32(137), heard[0].Status, "as `shim delete` said")
}

// TestDeathByADistrustedNamesake: a binary that others could replace stands in for none where the config refuses such
// ones. It is as if there were none: nothing that the node's other users have put there is run, and the id is free.
func TestDeathByADistrustedNamesake(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{}, shimtest.WithScript())
	y.config.BinaryCheck = shimclient.CheckRefuse
	y.boot()
	y.run("c1", "sleep")
	other := filepath.Join(y.shim.Home, "other")
	require.NoError(t, os.Mkdir(other, 0o700))
	require.NoError(t, os.Chmod(other, 0o777))
	t.Setenv("PATH", other)
	proc := y.shim.Daemon("c1")
	away := filepath.Join(other, filepath.Base(y.shim.Path))
	require.NoError(t, os.Rename(y.shim.Path, away))
	require.NoError(t, proc.Kill())
	heard := y.exitsOf("c1")
	require.Equal(t, []string{"c1", ""}, idsOf(heard))
	require.Equal(t, uint32(255), heard[0].Status, "no `shim delete` has said")
	require.Zero(t, y.shim.Count(shimtest.KindExec, "delete"))
	y.until("c1 is gone", func() bool { return y.instance("c1") == nil })
	require.NoDirExists(t, y.bundle("c1"))

	require.NoError(t, os.Rename(away, y.shim.Path))
	y.run("c1", "sleep")
	y.remove("c1")
	y.empty()
}

// TestDeathWithoutABundle: where the directory is gone `shim delete` runs in an empty one, so that nothing of the
// runtime's is left and the id is free at once.
func TestDeathWithoutABundle(t *testing.T) {
	for name, gone := range map[string]func(y *yard) string{
		"bundle":    func(y *yard) string { return y.bundle("c1") },
		"namespace": func(y *yard) string { return filepath.Dir(y.bundle("c1")) },
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			task := y.run("c1", "exit", "7")
			_, err := task.Wait(y.ctx)
			require.NoError(t, err)
			y.events.await("c1", exitTopic, 1)
			y.written("c1")
			require.NoError(t, os.RemoveAll(gone(y)))
			y.killShim("c1")
			heard := y.exitsOf("c1")
			require.Equal(t, []string{"c1", ""}, idsOf(heard))
			require.Equal(t, uint32(7), heard[1].Status)
			e := y.shim.Find(shimtest.KindExec, "delete")
			require.Len(t, e, 1, "the first try succeeds")
			require.Equal(t, y.bundle("c1"), e[0].Cwd)
			y.run("c1", "sleep")
			y.remove("c1")
			y.empty()
		})
	}
}

// TestDeathOfAGroup: each task of a shared process is cleaned up on its own.
func TestDeathOfAGroup(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	for _, id := range []string{"g1", "c2"} {
		_, err := y.tasks.Create(y.ctx, id, y.grouped("g1"))
		require.NoError(t, err)
	}
	require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 1)
	y.killShim("g1")
	for _, id := range []string{"g1", "c2"} {
		heard := y.exitsOf(id)
		require.Equal(t, []string{id, ""}, idsOf(heard))
	}
	require.Equal(t, 2, y.shim.Count(shimtest.KindExec, "delete"))
}

// TestDeathOfANamedGroup: the socket is named after the group, not after an id that anybody has.
func TestDeathOfANamedGroup(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	_, err := y.tasks.Create(y.ctx, "c1", y.grouped("the-group"))
	require.NoError(t, err)
	y.killShim("c1")
	y.exitsOf("c1")
	require.Empty(t, y.shim.Sockets())
}

// TestDeathInACall: whoever is in a call gets NotFound, once death is proven.
func TestDeathInACall(t *testing.T) {
	for _, method := range []string{"State", "Kill", "Pids", "Pause"} {
		t.Run(method, func(t *testing.T) {
			y := newYard(t, rules(shimtest.Rule{Method: method, Die: true}))
			task := y.run("c1", "sleep")
			calls := map[string]func() error{
				"State": func() error { _, err := task.State(y.ctx); return err },
				"Kill":  func() error { return task.Kill(y.ctx, 9, false) },
				"Pids":  func() error { _, err := task.Pids(y.ctx); return err },
				"Pause": func() error { return task.Pause(y.ctx) },
			}
			err := calls[method]()
			// A State may come while the container is still known to run: then that is its answer.
			if method != "State" || err != nil {
				require.True(t, errdefs.IsNotFound(err), "%v", err)
			}
			require.Equal(t, []string{"c1", ""}, idsOf(y.exitsOf("c1")))
		})
	}
}

// TestDeathInDelete: the exit is the answer, or NotFound; it is told once, and nothing is left.
func TestDeathInDelete(t *testing.T) {
	for name, rule := range map[string]shimtest.Rule{
		"before":      {Method: "Delete", Die: true},
		"after":       {Method: "Delete", After: true, Die: true},
		"in shutdown": {Method: "Shutdown", Die: true},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, rules(rule))
			task := y.run("c1", "exit", "7")
			_, err := task.Wait(y.ctx)
			require.NoError(t, err)
			y.events.await("c1", exitTopic, 1)
			exit, err := y.tasks.Delete(y.ctx, "c1")
			require.NoError(t, err)
			require.Equal(t, uint32(7), exit.Status)
			require.Equal(t, []string{"c1", ""}, idsOf(y.exitsOf("c1")))
		})
	}
}

// TestDeathOfACreatedTask that was never started is told as well: it was a task.
func TestDeathOfACreatedTask(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.create("c1", "sleep")
	y.killShim("c1")
	require.Equal(t, exitTopic+" "+deleteTopic, strings.Join(topicsOf(y.exitsOf("c1")), " "))
}

// TestSuccessorIsLeftAlone: a late exit of an earlier task does not touch one with the same id.
func TestSuccessorIsLeftAlone(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	y.killShim("c1")
	first := y.exitsOf("c1")
	task := y.run("c1", "sleep")
	w := y.waiting(task)
	hear(t, y.m, testNamespace, exitEvent("c1", "c1", first[0].Pid, 137))
	require.Equal(t, runtime.RunningStatus, y.state(task).Status)
	require.Empty(t, w)
	y.kill(task)
	require.Equal(t, uint32(137), (<-w).exit.Status)
	y.remove("c1")
	y.empty()
}

// TestDeathWithDeleteThatSaysNothing: the exit is what the shim has written down, and unknown, not 0, where it has not.
func TestDeathWithDeleteThatSaysNothing(t *testing.T) {
	for name, faults := range map[string]shimtest.DeleteFaults{"prints nothing": {Mute: true},
		"prints no reply": {Garbage: true}} {
		for _, written := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, written down: %v", name, written), func(t *testing.T) {
				y := newYard(t, shimtest.Scenario{
					Delete: faults, NoExitFile: !written,
					Events: []shimtest.EventRule{{Topic: exitTopic, Drop: true}},
				})
				task := y.run("c1", "sleep")
				if written {
					require.NoError(t, task.Kill(y.ctx, 15, false))
					y.until("it has exited", func() bool {
						_,
							err := os.Stat(y.bundle("c1") + "/exit.json")
						return err == nil
					})
				}
				y.killShim("c1")
				heard := y.exitsOf("c1")
				require.Equal(t, []string{"c1", ""}, idsOf(heard))
				want := uint32(255)
				if written {
					want = 128 + 15
				}
				require.Equal(t, want, heard[0].Status)
			})
		}
	}
}
