// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// legacyShim makes a daemon use another generation of the runc shim, in a mount
// namespace of its own: those put their sockets into /run/containerd/s.
func legacyShim(shim string) change {
	return func(o *daemon.Options) {
		o.Path = []string{filepath.Dir(shim), filepath.Dir(kit.runc)}
		o.PrivateRun = true
	}
}

// generations are the runc shims of containerd before the present one.
var generations = []struct {
	name string
	get  func() (string, error)
}{
	{"1.6", func() (string, error) { return kit.Shim16() }},
	{"1.7", func() (string, error) { return kit.Shim17() }},
	{"2.2", func() (string, error) { return kit.Shim22() }},
}

func TestLegacyShims(t *testing.T) {
	t.Parallel()
	for _, g := range generations {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			needRoot(t)
			shim := tool(t, g.get)
			n := newNode(t, legacyShim(shim))
			for name, end := range ends {
				j := n.run("legacy-"+name, obedient(7))
				exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", n.shimPid(testNS, j.ID())))
				require.NoError(t, err)
				require.Equal(t, shim, exe, "the shim under test")
				end(n)
				n.Run()
				n.taskOf(j.ID()).obey(7)
			}

			j := n.run("victim", forever())
			e := j.waiting()
			require.NoError(t, unix.Kill(n.shimPid(testNS, j.ID()), unix.SIGKILL))
			require.EqualValues(t, 137, e.code())
			require.Eventually(t, func() bool { _, err := j.b.Task(n.ctx, nil); return err != nil }, patience, tick)
			j.b.remove()
		})
	}
}

// ShimCgroup is the one start option whose effect can be seen: a shim that
// never got its options runs in the daemon's own cgroup.
func TestStartOptions(t *testing.T) {
	t.Parallel()
	all := append(generations[:len(generations):len(generations)], struct {
		name string
		get  func() (string, error)
	}{"present", func() (string, error) { return kit.Shim() }})
	for _, g := range all {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			needRoot(t)
			n := newNode(t, legacyShim(tool(t, g.get)))
			path := filepath.Join(n.Cgroup(), "shims")
			makeCgroup(t, path)
			j := n.run("options", forever(), withOptions(func(o *options.Options) { o.ShimCgroup = path }))
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", n.shimPid(testNS, j.ID())))
			require.NoError(t, err)
			require.Contains(t, string(data), ":"+path+"\n")
			j.finish()
		})
	}
}

// makeCgroup makes a cgroup in each hierarchy, and removes it when the test
// ends, before the leftovers are checked.
func makeCgroup(t *testing.T, path string) {
	t.Helper()
	roots := []string{"/sys/fs/cgroup"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		roots, err = filepath.Glob("/sys/fs/cgroup/*")
		require.NoError(t, err)
	}
	for _, root := range roots {
		dir := filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(dir, 0o755))
		t.Cleanup(func() {
			// The shim that was in it may be on its way out.
			require.Eventually(t, func() bool {
				err := os.Remove(dir)
				return err == nil || os.IsNotExist(err)
			}, patience, tick, "removing %s", dir)
		})
		if strings.HasSuffix(root, "/cpuset") {
			inheritCpuset(t, root, path)
		}
	}
}

// inheritCpuset gives the cgroups on the way to path processors and memory:
// version 1 takes no process into one without.
func inheritCpuset(t *testing.T, root, path string) {
	t.Helper()
	dir := root
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, name)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			data, err := os.ReadFile(filepath.Join(parent, file))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, file), data, 0o644))
		}
	}
}
