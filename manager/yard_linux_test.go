// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
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

	young       bool // its daemon has just started, so that not all subscribers may have come back
	closeEvents func()
	untidy      bool // what is left in the directories is not looked at
}

// newYard starts a daemon. At the end of the test nothing may be left: no process, socket, bundle, activation, instance, goroutine,
// descriptor.
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
		GRPCAddress: filepath.Join(dir, "c.sock"), TTRPCAddress: y.events.path, SocketDir: filepath.Join(y.shim.Home, "s"),
		Env: []string{"YARD=1"}, Events: testExchange, Sandboxes: y.sandboxes, Containers: y.store, Runtimes: map[string]RuntimeConfig{},
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
	if !y.young {
		y.grow()
	}
	y.m.urge() // no start of a daemon is there to be left the machine to
	y.m.cleanPause = 10 * time.Millisecond
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
func (y *yard) grow() { y.m.started = time.Now().Add(-time.Hour) }

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

func (y *yard) path(elem ...string) string { return filepath.Join(append([]string{y.dir}, elem...)...) }

func (y *yard) bundle(id string) string { return y.path("state", testNamespace, id) }

// record of a task's bundle.
func (y *yard) record(id string) *bundle.Record {
	y.Helper()
	b, err := bundle.Layout{State: y.path("state"), Root: y.path("root")}.Open(testNamespace, id)
	require.NoError(y, err)
	r, err := b.ReadRecord()
	require.NoError(y, err)
	return r
}

// left lists what is in the directories of the daemon.
func (y *yard) left() []string {
	var found []string
	for _, dir := range []string{"state", "root", "sstate", "sroot"} {
		ids, _ := filepath.Glob(y.path(dir, "*", "*"))
		hidden, _ := filepath.Glob(y.path(dir, "*", ".*"))
		found = append(found, slices.Concat(ids, hidden)...)
	}
	return found
}

// written waits until it is on disk that the exit of a task was told.
func (y *yard) written(id string) {
	y.Helper()
	i := y.instance(id)
	y.until("the record is written", func() bool {
		i.mu.Lock()
		e := i.ledger.exitOfLocked("")
		heard := e != nil && e.Told && !i.ledger.writing.due
		i.mu.Unlock()
		if !heard || !y.m.saves.TryAcquire(savesAtOnce) {
			return false
		}
		y.m.saves.Release(savesAtOnce)
		return true
	})
}

func (y *yard) checkTidy() {
	if y.untidy || y.Failed() {
		return
	}
	require.Empty(y, y.left(), "bundles or work directories are left")
	require.Empty(y, y.mounts.names(), "mounts are left active")
}

// empty waits until the daemon knows of nothing any more, which every create that failed and every delete must come to.
func (y *yard) empty() {
	y.Helper()
	y.until("the manager is empty", func() bool {
		y.m.mu.Lock()
		defer y.m.mu.Unlock()
		return len(y.m.instances) == 0 && len(y.m.procs.All()) == 0 && len(y.m.leaving) == 0
	})
	require.Empty(y, y.left(), "bundles or work directories are left")
}

// until waits for something that has to come.
func (y *yard) until(what string, done func() bool) {
	y.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.FailNow(y, "waiting in vain until "+what)
		}
	}
}

func args(a ...string) *specs.Spec { return &specs.Spec{Process: &specs.Process{Args: a}} }

func anyOf(t require.TestingT, v any) typeurl.Any {
	a, err := typeurl.MarshalAny(v)
	require.NoError(t, err)
	return a
}

// opts of a create that runs a command in the fake shim.
func (y *yard) opts(command ...string) runtime.CreateOpts {
	y.Helper()
	return runtime.CreateOpts{Spec: anyOf(y, args(command...)), Runtime: y.shim.Path}
}

func (y *yard) create(id string, command ...string) runtime.Task {
	y.Helper()
	task, err := y.tasks.Create(y.ctx, id, y.opts(command...))
	require.NoError(y, err)
	return task
}

func (y *yard) run(id string, command ...string) runtime.Task {
	y.Helper()
	task := y.create(id, command...)
	require.NoError(y, task.Start(y.ctx))
	return task
}

// exec starts a process in a task.
func (y *yard) exec(task runtime.Task, id string, command ...string) runtime.ExecProcess {
	y.Helper()
	p, err := task.Exec(y.ctx, id, runtime.ExecOpts{Spec: typeurl.MarshalProto(anyOf(y, args(command...).Process))})
	require.NoError(y, err)
	require.NoError(y, p.Start(y.ctx))
	return p
}

// remove kills a task, waits for it and deletes it.
func (y *yard) remove(id string) *runtime.Exit {
	y.Helper()
	task, err := y.tasks.Get(y.ctx, id)
	require.NoError(y, err)
	y.kill(task)
	exit, err := y.tasks.Delete(y.ctx, id)
	require.NoError(y, err)
	return exit
}

func (y *yard) kill(task runtime.Task) *runtime.Exit {
	y.Helper()
	err := task.Kill(y.ctx, 9, true)
	if err != nil {
		require.ErrorContains(y, err, "already finished")
	}
	exit, err := task.Wait(y.ctx)
	require.NoError(y, err)
	return exit
}

func (y *yard) state(task runtime.Process) runtime.State {
	y.Helper()
	s, err := task.State(y.ctx)
	require.NoError(y, err)
	return s
}

// instance of a task, in whatever state.
func (y *yard) instance(id string) *Instance { return y.m.find(testNamespace, id) }

// inState waits until an instance is in a state.
func (y *yard) inState(id string, want state) *Instance {
	y.Helper()
	var i *Instance
	y.until("task "+id+" is "+want.String(), func() bool {
		if i = y.instance(id); i == nil {
			return false
		}
		st, _ := i.watch()
		return st == want
	})
	return i
}

// waiting starts a Wait and returns where its end comes.
func (y *yard) waiting(p runtime.Process) <-chan waited {
	ch := make(chan waited, 1)
	go func() {
		exit, err := p.Wait(y.ctx)
		ch <- waited{exit, err}
	}()
	return ch
}
