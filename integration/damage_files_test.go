// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// bundleDamage is what happens to one file of a bundle.
type bundleDamage struct {
	file  string
	empty bool // it is cut to nothing, else removed
}

func (d bundleDamage) String() string {
	return fmt.Sprintf("%s, %s", d.file, map[bool]string{true: "empty", false: "removed"}[d.empty])
}

// bundleDamages are all that can happen to what runc's shim and the daemon have left in a bundle.
func bundleDamages(t *testing.T, bundle string) (all []bundleDamage) {
	t.Helper()
	entries, err := os.ReadDir(bundle)
	require.NoError(t, err)
	for _, e := range entries {
		if e.IsDir() {
			continue // rootfs, in which the container lives
		}
		all = append(all, bundleDamage{e.Name(), false})
		if e.Type().IsRegular() {
			all = append(all, bundleDamage{e.Name(), true})
		}
	}
	return all
}

func (d bundleDamage) do(bundle string) error {
	path := filepath.Join(bundle, d.file)
	if d.empty {
		return os.Truncate(path, 0)
	}
	return os.Remove(path)
}

// A file of a bundle is damaged while the daemon is down. With a living shim the container goes on as it was; with a
// dead one all of it is cleaned up, runc's state too, and the id is free.
func TestBundleFilesDamaged(t *testing.T) {
	t.Parallel()
	for name, alive := range map[string]bool{"the shim lives": true, "the shim is dead": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			j := n.run("whole", forever())
			damages := bundleDamages(t, n.Bundle(testNS, "whole"))
			require.Contains(t, damages, bundleDamage{"bootstrap.json", true})
			require.Contains(t, damages, bundleDamage{"options.json", true})
			j.finish()
			pids := make([]uint32, len(damages))
			for k := range damages {
				pids[k] = n.run(fmt.Sprintf("c%d", k), forever()).Pid()
			}
			var shims []int
			for k := range damages {
				shims = append(shims, n.shimPid(testNS, fmt.Sprintf("c%d", k)))
			}
			n.Kill()
			for k, d := range damages {
				require.NoError(t, d.do(n.Bundle(testNS, fmt.Sprintf("c%d", k))), d)
				if !alive {
					require.NoError(t, unix.Kill(shims[k], unix.SIGKILL))
				}
			}
			n.Run()
			for k, d := range damages {
				id := fmt.Sprintf("c%d", k)
				t.Logf("%s: %s", id, d)
				if alive {
					j := n.taskOf(id)
					require.Equal(t, pids[k], j.Pid(), d)
					require.Equal(t, containerd.Running, j.status(), d)
					if d.file != "config.json" { // which runc reads for an exec
						_, code := j.execOutput("five", five...)
						require.EqualValues(t, 5, code, d)
					}
					j.finish()
					continue
				}
				n.boxOf(id).awaitGone()
				require.False(t, runs(pids[k]), "the container ends with its shim: %s", d)
				require.NoDirExists(t, filepath.Join(n.RuncRoot(), testNS, id), d)
				again := n.boxOf(id).newTask() // which runc refuses while it has state of that id
				again.start()
				again.finish()
			}
		})
	}
}
