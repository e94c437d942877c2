// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// yard is a daemon as far as this package is concerned: a manager over directories that outlive it, and a fake shim.
type yard struct {
	*testing.T
	ctx       context.Context
	shim      *shimtest.Shim
	dir       string
	events    *endpoint
	sandboxes *sandboxStore
	store     *containerStore
	mounts    *mountManager
	config    Config

	m     *ShimManager
	tasks *TaskManager
	boxes *SandboxController

	born        atomic.Value // when its daemon was started, a time.Time
	young       bool         // its daemon has just started, so that not all subscribers may have come back
	closeEvents func()
	distrusts   func() float64 // how many warm shims were distrusted since the yard began
	untidy      bool           // what is left in the directories is not looked at
}

// newYard starts a daemon. At the end of the test nothing may be left: no process, socket, bundle, activation,
// instance, goroutine, descriptor.
func newYard(t *testing.T, s shimtest.Scenario, opts ...shimtest.InstallOption) *yard {
	t.Helper()
	y := coldYard(t, s, opts...)
	y.boot()
	return y
}

// coldYard is a yard whose daemon is not started.
func coldYard(t *testing.T, s shimtest.Scenario, opts ...shimtest.InstallOption) *yard {
	t.Helper()
	shimtest.CheckLeaks(t)
	dir, err := os.MkdirTemp("", "sy")
	require.NoError(t, err)
	y := &yard{
		T: t, dir: dir, ctx: namespaces.WithNamespace(context.Background(), testNamespace),
		events: newEndpoint(t), shim: shimtest.Install(t, s, opts...),
		sandboxes: &sandboxStore{}, store: &containerStore{}, mounts: &mountManager{},
	}
	y.config = Config{
		GRPCAddress: filepath.Join(dir, "c.sock"), TTRPCAddress: y.events.path,
		SocketDir: filepath.Join(y.shim.Home, "s"),
		Env:       []string{"YARD=1"}, Events: testExchange, Sandboxes: y.sandboxes, Containers: y.store,
		Runtimes:  map[string]RuntimeConfig{},
		Deadlines: deadlines(time.Minute),
	}
	t.Cleanup(func() {
		y.halt()
		y.checkTidy()
		_ = os.RemoveAll(dir)
	})
	return y
}

// deadlines with d for what a shim answers at once.
func deadlines(d time.Duration) shimclient.Deadlines {
	all := shimclient.DefaultDeadlines()
	for _, m := range []string{"State", "Pids", "Stats", "Connect"} {
		all[m] = d
	}
	return all
}

// setTimeout changes one of containerd's timeouts for a test.
func setTimeout(t *testing.T, name string, d time.Duration) {
	before := timeout.Get(name)
	timeout.Set(name, d)
	t.Cleanup(func() { timeout.Set(name, before) })
}

// boot starts a daemon over the directories of the one before.
func (y *yard) boot() {
	y.Helper()
	y.list()
	y.begin()
}

// list is the first half of a boot.
func (y *yard) list() {
	y.Helper()
	y.config.Tasks = Dirs{Root: y.path("root"), State: y.path("state")}
	y.config.Boxes = Dirs{Root: y.path("sroot"), State: y.path("sstate")}
	// The context of a plugin is cancelled before its Close is called.
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	y.m, err = New(ctx, y.config)
	require.NoError(y, err)
	cancel()
	y.closeEvents = y.events.open() // a daemon serves once its plugins are there
	y.born.Store(time.Now())
	y.m.desk.Started = func() time.Time { return y.born.Load().(time.Time) }
	if !y.young {
		y.grow()
	}
	y.m.urge() // no start of a daemon is there to be left the machine to
	y.m.cleanPauses.First = 10 * time.Millisecond
}

// begin is the second half of a boot.
func (y *yard) begin() {
	y.Helper()
	var err error
	y.tasks, err = NewTaskManager(y.mounts, y.m)
	require.NoError(y, err)
	y.boxes, err = NewSandboxController(y.m)
	require.NoError(y, err)
}

// grow makes the daemon so old that all subscribers have come back.
func (y *yard) grow() { y.born.Store(time.Now().Add(-time.Hour)) }

// tasksOf are the tasks of a boot that is half done.
func (y *yard) tasksOf() *TaskManager {
	return &TaskManager{shims: y.m, layout: y.config.Tasks.layout()}
}

// halt stops the daemon in the orderly way, to where its process ends.
func (y *yard) halt() {
	y.Helper()
	if y.m == nil {
		return
	}
	y.until("the manager is closed", func() bool { return y.m.Close() == nil })
	for _, p := range y.m.procs.All() {
		if w := warmth(p); w != nil {
			y.m.pool.account.Ending(w.entry) // nobody is there to see to what it leaves
		}
		p.End() // what the kernel does at the end of a process
	}
	y.closeEvents()
	y.m = nil
}

// restart stops the daemon, lets something happen while it is down, and starts the next one.
func (y *yard) restart(meanwhile ...func()) {
	y.Helper()
	y.halt()
	for _, f := range meanwhile {
		f()
	}
	y.boot()
}

// crash ends the daemon without a chance to end its idle shims.
func (y *yard) crash(meanwhile ...func()) {
	y.Helper()
	y.until("no spare is being started", func() bool { return !y.filling() })
	y.takeAll() // a clean stop ends those that are idle
	y.restart(meanwhile...)
}

func (y *yard) path(elem ...string) string { return filepath.Join(append([]string{y.dir}, elem...)...) }

func (y *yard) bundle(id string) string { return y.path("state", testNamespace, id) }

// runcShim installs the fake as the runtime that is vouched for.
func runcYard(t *testing.T, s shimtest.Scenario) *yard {
	y := coldYard(t, s, shimtest.WithName("containerd-shim-runc-v2"))
	y.config.Runtimes[plugins.RuntimeRuncV2] = RuntimeConfig{Path: y.shim.Path}
	y.boot()
	return y
}
