// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// loseBootstrap removes bootstrap.json, and what our record says of the same, as records of earlier versions do not.
func (y *yard) loseBootstrap(id string) {
	y.Helper()
	require.NoError(y, os.Remove(filepath.Join(y.bundle(id), "bootstrap.json")))
	y.changeRecord(id, func(r map[string]any) { delete(r, "endpoint") })
}

// changeRecord changes the record of a task on disk.
func (y *yard) changeRecord(id string, change func(map[string]any)) {
	y.Helper()
	path := filepath.Join(y.bundle(id), "shimyard.json")
	data, err := os.ReadFile(path)
	require.NoError(y, err)
	var r map[string]any
	require.NoError(y, json.Unmarshal(data, &r))
	change(r)
	data, err = json.Marshal(r)
	require.NoError(y, err)
	require.NoError(y, os.WriteFile(path, data, 0o600))
}

// TestAddressFromTheRecord: it serves for every kind of address.
func TestAddressFromTheRecord(t *testing.T) {
	for name, s := range map[string]shimtest.Scenario{
		"ttrpc": {}, "grpc": {Transport: "grpc"}, "abstract": {Socket: shimtest.Abstract},
		"containerd 1.6": {Generation: shimtest.Legacy},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, s)
			before := y.state(y.run("c1", "sleep"))
			path := filepath.Join(y.bundle("c1"), "bootstrap.json")
			was, err := os.ReadFile(path)
			require.NoError(t, err)
			y.restart(func() { require.NoError(t, os.Remove(path)) })
			y.inState("c1", life.Running)
			require.Equal(t, before, y.state(mustGet(y, "c1")))
			if s.Generation != shimtest.Legacy { // whose own address file says the same
				y.until("it is written down again", func() bool { _, err := os.Stat(path); return err == nil })
				now, err := os.ReadFile(path)
				require.NoError(t, err)
				require.JSONEq(t, string(was), string(now))
			}
			y.remove("c1")
			y.empty()
		})
	}
}

// TestAddressFromOtherTraces: where the record does not have it either.
func TestAddressFromOtherTraces(t *testing.T) {
	for name, kind := range shimKinds {
		for _, alive := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", alive", false: ", dead"}[alive], func(t *testing.T) {
				y := kind.yard(t)
				kind.make(y, "c1")
				kind.make(y, "c2")
				before := map[string]runtime.State{"c1": y.state(mustGet(y, "c1")), "c2": y.state(mustGet(y, "c2"))}
				y.restart(func() {
					y.loseBootstrap("c1")
					if name == "in a pod" || name == "own" {
						y.loseBootstrap("c2") // so that it is no kin of use
					}
					for _, p := range y.shim.Procs(shimtest.RoleDaemon) {
						if !alive {
							require.NoError(t, p.Kill())
						}
					}
				})
				for id, s := range before {
					if alive {
						y.isWhole(id, s, damage{"bootstrap.json", "lost"})
					} else {
						y.wasBuried(id, s.Pid, damage{"bootstrap.json", "lost"})
					}
				}
				if alive && kind.end != nil {
					kind.end(y)
				}
				y.noPool()
				y.empty()
			})
		}
	}
}

// unreachable is a task whose shim lives and whose address nobody knows, after a start of the daemon.
func (y *yard) unreachable(id string) runtime.Task {
	y.Helper()
	path := y.socketOf(id)
	y.restart(func() {
		y.loseBootstrap(id)
		require.NoError(y, os.Remove(path))
	})
	return mustGet(y, id)
}

// TestUnreachableShim: both are left alone, and answered for at once, until the shim is gone.
func TestUnreachableShim(t *testing.T) {
	for _, first := range []string{"init", "shim", "both by a client"} {
		t.Run(first+" goes", func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			before := y.state(y.run("c1", "sleep"))
			y.events.await("c1", runtime.TaskStartEventTopic, 1)
			task := y.unreachable("c1")
			setTimeout(t, shimproc.TimeoutLoad, time.Hour) // nothing waits for it
			require.Equal(t, before, y.state(task))
			for name, call := range map[string]func() error{
				"Pids":  func() error { _, err := task.Pids(y.ctx); return err },
				"Stats": func() error { _, err := task.Stats(y.ctx); return err },
				"Pause": func() error { return task.Pause(y.ctx) },
				"Kill":  func() error { return task.Kill(y.ctx, 15, false) },
				"Delete": func() error {
					_, err := y.tasks.Delete(y.ctx, "c1")
					return err
				},
			} {
				err := call()
				require.True(t, errdefs.IsUnavailable(err), "%s: %v", name, err)
				require.ErrorContains(t, err, "bootstrap.json", name)
			}
			tasks, err := y.tasks.Tasks(y.ctx, false)
			require.NoError(t, err)
			require.Equal(t, before, y.state(tasks[0]))
			require.Len(t, y.shim.Procs(), 2)
			w := y.waiting(task)
			if first == "init" {
				for _, p := range y.shim.Procs(shimtest.RoleGuest) {
					require.NoError(t, p.Kill())
				}
				require.Equal(t, uint32(137), (<-w).exit.Status, "the shim has told it")
				require.Equal(t, runtime.StoppedStatus, y.state(task).Status)
			}
			if first == "both by a client" {
				require.NoError(t, task.Kill(y.ctx, 9, false))
				require.Equal(t, uint32(137), (<-w).exit.Status)
				exit, err := y.tasks.Delete(y.ctx, "c1")
				require.NoError(t, err)
				require.Equal(t, uint32(137), exit.Status)
				y.shim.AwaitNoProcs()
			} else {
				y.killShim("c1")
			}
			if first == "shim" {
				require.Equal(t, uint32(137), (<-w).exit.Status)
			}
			heard := y.exitsOf("c1")
			require.Equal(t, []string{"c1", ""}, idsOf(heard))
			require.Equal(t, uint32(137), heard[0].Status)
			require.Equal(t, before.Pid, heard[0].Pid)
			_, err = y.tasks.Delete(y.ctx, "c1")
			require.True(t, errdefs.IsNotFound(err), "%v", err)
		})
	}
}

// TestUnreachableAndBack: a bootstrap.json that is put back is used at the next start.
func TestUnreachableAndBack(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	file, path := filepath.Join(y.bundle("c1"), "bootstrap.json"), y.socketOf("c1")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	y.restart(func() {
		y.loseBootstrap("c1")
		require.NoError(t, os.Rename(path, path+".away"))
	})
	_, err = mustGet(y, "c1").Pids(y.ctx)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	y.restart(func() {
		require.NoError(t, os.Rename(path+".away", path))
		require.NoError(t, os.WriteFile(file, data, 0o644))
	})
	y.inState("c1", life.Running)
	y.remove("c1")
	y.empty()
}

// TestStrangerUnderTheName: the socket of a task's name is another shim's. It is not taken for the task's, nor ended
// for it.
func TestStrangerUnderTheName(t *testing.T) {
	for name, lost := range map[string]bool{"the address is guessed": true, "the address is on record": false} {
		t.Run(name, func(t *testing.T) { strangerUnderTheName(t, lost) })
	}
}

func strangerUnderTheName(t *testing.T, lost bool) {
	y := newYard(t, shimtest.Scenario{})
	before := y.state(y.run("c1", "sleep"))
	y.run("c2", "sleep")
	path, other := y.socketOf("c1"), y.socketOf("c2")
	y.restart(func() {
		if lost {
			y.loseBootstrap("c1")
			y.loseBootstrap("c2")
		}
		require.NoError(t, os.Rename(other, path))
	})
	task := mustGet(y, "c1")
	y.until("the stranger has said who it is", func() bool {
		_, err := task.Pids(y.ctx)
		return errdefs.IsUnavailable(err)
	})
	require.Equal(t, before, y.state(task))
	require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 2)
	y.killShim("c1")
	y.events.await("c1", deleteTopic, 1)
	require.Equal(t, runtime.RunningStatus, y.state(mustGet(y, "c2")).Status)
	require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 1)
	y.killShim("c2")
	y.exitsOf("c2")
	_ = os.Remove(path) // or it has gone with the one whose name it was
}

// TestDeletedBehindTheDaemon: a task was created once and its shim knows it no more. It is cleaned up without force:
// what carries the token of the launch may be anybody's by now.
func TestDeletedBehindTheDaemon(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	ep, token := y.instance("c1").process().Endpoint, y.record("c1").Launch.Token
	left := exec.Command("sleep", "1000")
	left.Env = append(os.Environ(), shimclient.TokenEnv+"="+token)
	pid, err := shimclient.LookupProcess(shimtest.Child(t, left).Process.Pid)
	require.NoError(t, err)
	y.restart(func() {
		conn, err := shimclient.Dial(y.ctx, ep, y.config.Deadlines)
		require.NoError(t, err)
		defer conn.Close()
		shim, err := conn.Task(ep.Version)
		require.NoError(t, err)
		require.NoError(t, shim.Kill(y.ctx, &taskapi.KillRequest{ID: "c1", Signal: 9, All: true}))
		_, err = shim.Wait(y.ctx, &taskapi.WaitRequest{ID: "c1"})
		require.NoError(t, err)
		_, err = shim.Delete(y.ctx, &taskapi.DeleteRequest{ID: "c1"})
		require.NoError(t, err)
	})
	y.empty()
	y.shim.AwaitNoProcs()
	require.True(t, pid.Alive(), "it is nobody's to end")
}
