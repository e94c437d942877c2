// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// strip removes what only we write into bundles, and more.
func (y *yard) strip(id string, more ...string) {
	y.Helper()
	for _, name := range append(more, "shimyard.json") {
		require.NoError(y, os.Remove(filepath.Join(y.bundle(id), name)))
	}
}

// TestForeignBundles: those that stock containerd left are taken over, by bootstrap.json or by the address that old
// shims leave.
func TestForeignBundles(t *testing.T) {
	for _, c := range []struct {
		name     string
		scenario shimtest.Scenario
		remove   []string
	}{
		{name: "no record"},
		{name: "address only", scenario: shimtest.Scenario{Generation: shimtest.Legacy},
			remove: []string{"bootstrap.json", "shim-binary-path"}},
		{name: "binary not named", remove: []string{"shim-binary-path"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t, c.scenario)
			pid, _ := y.run("c1", "sleep").PID(y.ctx)
			y.run("c2", "sleep")
			for _, id := range []string{"c1", "c2"} {
				y.store.add(id, y.shim.Path, nil)
			}
			y.restart(func() {
				y.strip("c1", c.remove...)
				y.strip("c2", c.remove...)
			})
			y.inState("c1", life.Running)
			y.inState("c2", life.Running)
			require.Equal(t, runtime.State{Status: runtime.RunningStatus, Pid: pid}, y.state(mustGet(y, "c1")))
			// Without the binary's name the pid cannot be verified; the socket and the working directory have to do.
			require.Equal(t, len(c.remove) == 0, y.instance("c1").process().Verified() != shimclient.ProcessID{})
			y.remove("c1")
			y.restart()
			y.inState("c2", life.Running)
			y.killShim("c2")
			require.Equal(t, []string{"c2", ""}, idsOf(y.exitsOf("c2")))
			y.empty()
		})
	}
}

// TestForeignPodLog: of the logs in a pod that stock containerd left the one is drained that the shim writes to, the
// pause container's.
func TestForeignPodLog(t *testing.T) {
	for name, joined := range map[string]bool{"sandbox": true, "group": false} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			ids := []string{"c1", "c2", "pause", "c3", "c4"}
			for _, id := range append([]string{"pause"}, ids...) {
				if y.instance(id) == nil {
					_, err := y.tasks.Create(y.ctx, id, y.grouped("pause"))
					require.NoError(t, err)
				}
			}
			require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 1)
			y.restart(func() {
				for _, id := range ids {
					y.strip(id)
					if joined && id != "pause" {
						require.NoError(t, os.WriteFile(filepath.Join(y.bundle(id), "sandbox"), []byte("pause"), 0o600))
						require.NoError(t, os.Remove(filepath.Join(y.bundle(id), "config.json")))
					}
				}
			})
			for _, id := range ids {
				y.inState(id, life.Running)
			}
			require.Equal(t, []string{filepath.Join(y.bundle("pause"), "log")}, y.openLogs())
			for _, id := range ids {
				y.remove(id)
			}
			y.empty()
		})
	}
}

// openLogs are the shims' logs that the daemon has open.
func (y *yard) openLogs() []string {
	y.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(y, err)
	var open []string
	for _, fd := range fds {
		if path, err := os.Readlink(fd); err == nil && filepath.Base(path) == "log" && !slices.Contains(open, path) {
			open = append(open, path)
		}
	}
	return open
}

// TestForeignDeadWhileDown: the pid comes from init.pid, the exit from `shim delete`.
func TestForeignDeadWhileDown(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	pid, _ := y.run("c1", "sleep").PID(y.ctx)
	y.restart(func() {
		y.strip("c1")
		y.killShim("c1")
	})
	heard := y.exitsOf("c1")
	require.Equal(t, []string{"c1", ""}, idsOf(heard))
	require.Equal(t, pid, heard[0].Pid)
	require.Equal(t, uint32(137), heard[0].Status)
}

// TestForeignStalled: without a record the State of a silent shim is what init.pid tells.
func TestForeignStalled(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	pid, _ := y.run("c1", "sleep").PID(y.ctx)
	cont := y.stop("c1")
	y.restart(func() { y.strip("c1") })
	require.Equal(t, runtime.State{Status: runtime.RunningStatus, Pid: pid}, y.state(mustGet(y, "c1")))
	cont()
	y.inState("c1", life.Running)
	y.remove("c1")
	y.empty()
}

// TestRecordsThatCannotBeRead: a record of a newer version, or a damaged one, makes the bundle a foreign one and costs
// no container.
func TestRecordsThatCannotBeRead(t *testing.T) {
	for name, data := range map[string]string{"newer": `{"version":99,"task":[]}`, "damaged": "{", "empty": ""} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			y.run("c1", "sleep")
			y.restart(func() {
				require.NoError(t, os.WriteFile(filepath.Join(y.bundle("c1"), "shimyard.json"), []byte(data), 0o600))
			})
			y.inState("c1", life.Running)
			y.remove("c1")
			y.empty()
		})
	}
}

// TestBootstrapThatCannotBeRead: how to reach the shim is not known, so nobody can say that it is dead: both are left
// alone.
func TestBootstrapThatCannotBeRead(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	before := y.state(y.run("c1", "sleep"))
	path := filepath.Join(y.bundle("c1"), "bootstrap.json")
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, bad := range []string{"{", `{"version":9,"address":"unix:///x","protocol":"ttrpc"}`} {
		y.restart(func() { require.NoError(t, os.WriteFile(path, []byte(bad), 0o600)) })
		require.Equal(t, before, y.state(mustGet(y, "c1")))
		require.Len(t, y.shim.Procs(), 2)
	}
	y.restart(func() { require.NoError(t, os.WriteFile(path, good, 0o600)) })
	y.inState("c1", life.Running)
	y.remove("c1")
	y.empty()
}

// TestEmptyBundle: a create that was cut short before anything was written.
func TestEmptyBundle(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.restart(func() { require.NoError(t, os.MkdirAll(y.bundle("c1"), 0o700)) })
	y.empty()
	y.create("c1", "sleep")
	y.remove("c1")
	y.empty()
}

// TestLeftoverBundle in the way of a create: one of a dead instance is cleared, one whose shim runs is not.
func TestLeftoverBundle(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	y.run("c2", "sleep")
	y.halt()
	away := y.path("away")
	require.NoError(t, os.Rename(y.path("state"), away))
	y.boot()
	require.NoError(t, copyTree(filepath.Join(away, testNamespace), y.path("state", testNamespace)))
	y.killShim("c1")
	_, err := y.tasks.Create(y.ctx, "c1", y.opts("sleep"))
	require.NoError(t, err)
	_, err = y.tasks.Create(y.ctx, "c2", y.opts("sleep"))
	require.ErrorContains(t, err, "still runs")
	require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 2)
	y.remove("c1")
	y.restart()
	y.inState("c2", life.Running)
	y.remove("c2")
	y.empty()
	require.NoError(t, os.RemoveAll(away))
}

// TestUnknownDirectoryInTheWay of a create: the id cannot be had, and what is in the directory is not touched.
func TestUnknownDirectoryInTheWay(t *testing.T) {
	for _, when := range []string{"before the daemon's start", "after it"} {
		t.Run(when, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{Sandbox: true})
			y.untidy = true
			strange := []string{filepath.Join(y.bundle("c1"), "data"), y.path("sstate", testNamespace, "s1", "data")}
			place := func() {
				for _, path := range strange {
					require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
					require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
				}
			}
			if when == "after it" {
				place()
			} else {
				y.restart(place)
			}
			_, err := y.tasks.Create(y.ctx, "c1", y.opts("sleep"))
			require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
			require.ErrorContains(t, err, y.bundle("c1"))
			err = y.boxes.Create(y.ctx, sandboxOf(y, "s1"))
			require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
			require.ErrorContains(t, err, filepath.Dir(strange[1]))
			for _, path := range strange {
				require.FileExists(t, path)
				require.NoError(t, os.RemoveAll(filepath.Dir(path)))
			}
			y.create("c1", "sleep")
			y.remove("c1")
			y.empty()
		})
	}
}

// TestLeftoverThatCannotBeRead: where its shim listens is not known, so it may well be alive.
func TestLeftoverThatCannotBeRead(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	require.NoError(t, os.MkdirAll(y.bundle("c1"), 0o700))
	bootstrap := filepath.Join(y.bundle("c1"), "bootstrap.json")
	for _, data := range []string{"", "{", `{"version":9,"address":"unix:///x","protocol":"ttrpc"}`} {
		require.NoError(t, os.WriteFile(bootstrap, []byte(data), 0o600))
		_, err := y.tasks.Create(y.ctx, "c1", y.opts("sleep"))
		require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
		require.ErrorContains(t, err, y.bundle("c1"))
		require.FileExists(t, bootstrap)
	}
	require.NoError(t, os.RemoveAll(y.bundle("c1")))
	y.empty()
}

func copyTree(from, to string) error {
	return filepath.Walk(from, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		dest := filepath.Join(to, rel)
		switch {
		case info.IsDir():
			return os.MkdirAll(dest, info.Mode().Perm())
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, dest)
		case info.Mode().IsRegular():
			src, err := os.Open(path)
			if err != nil {
				return err
			}
			defer src.Close()
			data, err := io.ReadAll(src)
			if err != nil {
				return err
			}
			return os.WriteFile(dest, data, info.Mode().Perm())
		}
		return nil
	})
}
