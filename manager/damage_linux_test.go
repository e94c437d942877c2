// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// shimKinds are the ways in which a task comes to the shim that serves it. make creates one more task and starts it.
var shimKinds = map[string]struct {
	yard func(t *testing.T) *yard
	make func(y *yard, id string)
	// end sees to what is there beside the tasks; where the shims are dead that goes by itself.
	end func(y *yard)
}{
	"own": {
		yard: func(t *testing.T) *yard { return newYard(t, shimtest.Scenario{}) },
		make: func(y *yard, id string) { y.run(id, "sleep") },
	},
	"warm": {
		yard: func(t *testing.T) *yard { return poolYard(t, shimtest.Scenario{}, PoolConfig{Reuse: 100}) },
		make: func(y *yard, id string) { y.pooled(id) },
	},
	"in a pod": {
		yard: func(t *testing.T) *yard {
			y := newYard(t, shimtest.Scenario{Sandbox: true})
			y.box("s1")
			return y
		},
		make: func(y *yard, id string) {
			o := y.opts("sleep")
			o.SandboxID = "s1"
			y.start(id, o)
		},
		end: func(y *yard) { require.NoError(y, y.boxes.Shutdown(y.ctx, "s1")) },
	},
	"in a group": {
		yard: func(t *testing.T) *yard {
			y := newYard(t, shimtest.Scenario{})
			y.start("g1", y.grouped("g1"))
			return y
		},
		make: func(y *yard, id string) { y.start(id, y.grouped("g1")) },
		end:  func(y *yard) { y.remove("g1") },
	},
}

// damage is something that happens to one file of a bundle.
type damage struct {
	file string
	how  string
}

// damages are all that can happen to the files of a bundle: each is removed, and each with content is cut to half of
// it, or to nothing.
func damages(t *testing.T, dir string) (all []damage) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		all = append(all, damage{e.Name(), "removed"})
		if e.Type().IsRegular() {
			all = append(all, damage{e.Name(), "empty"}, damage{e.Name(), "half"})
		}
	}
	return all
}

func (d damage) do(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, d.file)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	switch d.how {
	case "removed":
		require.NoError(t, os.Remove(path))
	case "empty":
		require.NoError(t, os.Truncate(path, 0))
	case "half":
		require.NoError(t, os.Truncate(path, info.Size()/2))
	}
}

// TestDamagedBundle: a file of a bundle is removed or cut while the daemon is down. A living shim costs that no
// container, and a dead one's exit is told.
func TestDamagedBundle(t *testing.T) {
	for name, kind := range shimKinds {
		for _, alive := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, alive %t", name, alive), func(t *testing.T) {
				y := kind.yard(t)
				kind.make(y, "c0")
				all := damages(t, y.bundle("c0"))
				require.Contains(t, all, damage{"bootstrap.json", "half"})
				require.Contains(t, all, damage{"shimyard.json", "removed"})
				of, before := make(map[string]damage), make(map[string]runtime.State)
				for n, d := range all {
					id := fmt.Sprintf("c%d", n+1)
					kind.make(y, id)
					of[id], before[id] = d, y.state(mustGet(y, id))
				}
				before["c0"] = y.state(mustGet(y, "c0"))
				if !alive {
					// For the one in a pod whose record is lost: who has started its shim is not known then.
					setTimeout(t, shimproc.TimeoutLoad, 2*time.Second)
				}
				y.restart(func() {
					for id, d := range of {
						d.do(t, y.bundle(id))
					}
					for _, p := range y.shim.Procs(shimtest.RoleDaemon) {
						if !alive {
							require.NoError(t, p.Kill())
						}
					}
				})
				for _, id := range slices.Sorted(maps.Keys(before)) {
					if alive {
						y.isWhole(id, before[id], of[id])
					} else {
						y.wasBuried(id, before[id].Pid, of[id])
					}
				}
				if alive && kind.end != nil {
					kind.end(y)
				}
				y.noPool()
				y.empty()
				y.shim.AwaitNoProcs()
			})
		}
	}
}
