// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"slices"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// crashScenario is something that a daemon does and dies of half way.
type crashScenario struct {
	// points that it is known to pass.
	points []string
	// skip are those of the points that it does not pass, or need not, with a kind.
	skip map[string][]string
	// kinds of shims that it runs with.
	kinds []string
	// prepare runs while all is well.
	prepare func(*crash)
	// crashed: the daemon of prepare ends by SIGKILL, so that what is idle stays.
	crashed bool
	// down runs while there is no daemon; nil: nothing.
	down func(*crash)
	// act makes the daemon pass the points; errors are those of a daemon that
	// has gone. nil: the start of the daemon does.
	act func(*crash, context.Context, *containerd.Client)
	// check runs under a new daemon, and uses up what there is.
	check func(*crash)
}

func (s *crashScenario) pointsOf(kind string) []string {
	return slices.DeleteFunc(slices.Clone(s.points), func(p string) bool { return slices.Contains(s.skip[kind], p) })
}

// crash is one run of a scenario.
type crash struct {
	*node
	kind  *crashKind
	point string
	// victim is the shim process that is to be killed.
	victim int
	record *bundle.Record // of "c", as the dead daemon left it; nil: none
	known  bool           // there was a bundle of "c"
}

// crashKind is a kind of shim, and commands for its containers.
type crashKind struct {
	shim                         *shimtest.Shim // nil: runc's
	opts                         []setupOpt
	changes                      []change
	forever, seven, exec, execed []string
}

func newCrashKind(t *testing.T, name string) *crashKind {
	switch name {
	case "shared": // two tasks in one shim
		k := newCrashKind(t, "runc")
		k.changes = []change{withShare(2)}
		return k
	case "runc":
		return &crashKind{forever: []string{"sleep", "1000000"}, seven: []string{"sh", "-c", "exit 7"},
			exec: []string{"sh", "-c", "exit 5"}, execed: []string{"sleep", "1000000"}}
	case "fake", "sandbox":
		shim := shimtest.Install(t, shimtest.Scenario{Sandbox: name == "sandbox"})
		return &crashKind{shim: shim, opts: []setupOpt{fake(shim)}, forever: []string{"sleep"},
			seven: []string{"exit", "7"},
			exec:  []string{"exit", "5"}, execed: []string{"sleep"}}
	}
	t.Fatalf("no such kind: %q", name)
	return nil
}

func (c *crash) container(id string, args []string, more ...setupOpt) *box {
	c.t.Helper()
	return c.create(id, append(append([]setupOpt{spec(args...)}, c.kind.opts...), more...)...)
}

// Failpoints on the way of a create, in their order.
var createPoints = []string{
	"create-bundle", "launch-recorded", "launch-started", "launch-bootstrap", "create-shim", "create-mounts",
	"create-task", "create-recorded",
}

// Failpoints on the way of a create that starts a warm shim, instead of create-bundle and the launch- ones.
var warmPoints = []string{"warm-recorded", "warm-started", "warm-assembled", "warm-lent", "warm-taken"}

var crashScenarios = map[string]*crashScenario{
	"create": {
		points: slices.Concat(createPoints, warmPoints),
		kinds:  []string{"runc", "fake"},
		skip: map[string][]string{"runc": {"create-bundle", "launch-recorded", "launch-started", "launch-bootstrap"},
			"fake": warmPoints},
		prepare: func(c *crash) { c.container("c", c.kind.forever) },
		act:     tryTask,
		check:   func(c *crash) { c.settle("c", 137); c.again("c") },
	},
	"create on a shim that was idle": {
		points: []string{"warm-assembled", "warm-lent", "warm-taken", "create-shim", "create-mounts", "create-task",
			"create-recorded"},
		kinds: []string{"runc"},
		prepare: func(c *crash) {
			c.container("c", c.kind.forever)
			j := c.container("first", c.kind.forever).newTask()
			j.start()
			j.finish()
		},
		crashed: true,
		act:     tryTask,
		check:   func(c *crash) { c.settle("c", 137); c.again("c") },
	},
	"create beside another task in its shim": {
		points: []string{"warm-beside"},
		kinds:  []string{"shared"},
		prepare: func(c *crash) {
			c.container("first", c.kind.forever)
			c.container("c", c.kind.forever)
		},
		act: func(c *crash, ctx context.Context, cl *containerd.Client) {
			tryTaskOf(ctx, cl, "first")
			tryTask(c, ctx, cl)
		},
		check: func(c *crash) {
			c.settle("c", 137)
			require.NotNil(c.t, c.settle("first", 137), "the first in the shim is gone")
			c.boxOf("first").remove()
			c.again("c")
		},
	},
	"delete": {
		points: []string{"delete-task", "delete-recorded", "delete-released", "clean-shim-delete", "clean-bundle",
			"clean-removed"},
		kinds:   []string{"runc", "fake"},
		skip:    map[string][]string{"runc": {"clean-shim-delete"}}, // needless after an orderly delete
		prepare: prepareStopped,
		act: func(_ *crash, ctx context.Context, cl *containerd.Client) {
			if container, err := cl.LoadContainer(ctx, "c"); err == nil {
				if task, err := container.Task(ctx, nil); err == nil {
					_, _ = task.Delete(ctx)
				}
			}
		},
		check: func(c *crash) { c.settle("c", 7); c.again("c") },
	},
	"exit told again": {
		points:  []string{"repeat-counted"},
		kinds:   []string{"fake"},
		prepare: prepareStopped, // the daemon is young
		check:   func(c *crash) { require.NotNil(c.t, c.settle("c", 7)); c.again("c") },
	},
	"exec deleted": {
		points: []string{"exec-deleted"},
		kinds:  []string{"runc", "fake"},
		prepare: func(c *crash) {
			log := c.watch()
			j := c.container("c", c.kind.forever).newTask()
			j.start()
			j.exec("ended", c.kind.exec...)
			log.waitFor("/tasks/exit", "c")
		},
		act: func(_ *crash, ctx context.Context, cl *containerd.Client) {
			if p, err := loadExec(ctx, cl, "ended"); err == nil {
				_, _ = p.Delete(ctx)
			}
		},
		check: func(c *crash) {
			// The shim does not know it any more. Its client was not given the exit, and comes back for it.
			p, err := loadExec(c.ctx, c.Client(), "ended")
			require.NoError(c.t, err)
			exit, err := p.Delete(c.ctx)
			require.NoError(c.t, err)
			require.EqualValues(c.t, 5, exit.ExitCode())
			require.NotNil(c.t, c.settle("c", 137))
			c.again("c")
		},
	},
	"delete that leaves the shim idle": {
		points: []string{"delete-task", "delete-recorded", "warm-kept", "delete-released", "clean-bundle",
			"warm-returned", "warm-emptied",
			"clean-removed", "warm-recycled"},
		kinds:   []string{"runc"},
		prepare: func(c *crash) { c.container("c", c.kind.seven) },
		act:     tryWholeLife, // a shim that has gone through a restart is not used again
		check:   func(c *crash) { c.settle("c", 7); c.again("c") },
	},
	"shim killed": {
		points: []string{"clean-shim-delete", "bury-recorded", "tell-counted", "tell-exit", "tell-delete",
			"clean-bundle", "clean-removed"},
		kinds: []string{"runc", "fake"},
		// slow
		skip: map[string][]string{"runc": {"clean-shim-delete", "tell-counted", "tell-delete", "clean-bundle",
			"clean-removed"}},
		prepare: prepareWithExec,
		act:     func(c *crash, _ context.Context, _ *containerd.Client) { c.killVictim() },
		check:   checkTold,
	},
	"shim killed after its bundle was removed": {
		points:  []string{"clean-bundle-replaced"},
		kinds:   []string{"runc"},
		prepare: prepareWithExec,
		act: func(c *crash, ctx context.Context, cl *containerd.Client) {
			if container, err := cl.LoadContainer(ctx, "c"); err == nil {
				if task, err := container.Task(ctx, nil); err == nil {
					_, _ = task.Pids(ctx) // the daemon has read the bundle
				}
			}
			c.removeBundle("c")
			c.killVictim()
		},
		check: checkTold,
	},
	"shim killed while down": {
		points:  []string{"bury-recorded", "tell-exit"},
		kinds:   []string{"fake"},
		prepare: prepareWithExec,
		down:    (*crash).killVictim,
		check:   checkTold,
	},
	"restart": {
		points: []string{"restore-listed", "restore-answered"},
		kinds:  []string{"runc", "fake"},
		prepare: func(c *crash) {
			prepareStopped(c)
			c.container("running", c.kind.forever).newTask().start()
		},
		check: func(c *crash) {
			require.NotNil(c.t, c.settle("running", 137), "a running container is gone")
			require.NotNil(c.t, c.settle("c", 7), "a stopped container is gone")
			c.boxOf("running").remove()
			c.again("c")
		},
	},
	"group": {
		points: createPoints,
		kinds:  []string{"runc"},
		prepare: func(c *crash) {
			c.container("first", c.kind.forever, inGroup("g")).newTask().start()
			c.container("c", c.kind.forever, inGroup("g"))
		},
		act: tryTask,
		check: func(c *crash) {
			c.settle("c", 137)
			again := c.boxOf("c").newTask() // while the first is there
			again.start()
			c.use(again, 137)
			require.NotNil(c.t, c.settle("first", 137), "the first of the group is gone")
			c.boxOf("first").remove()
			c.again("c")
		},
	},
	"join": {
		points: []string{"create-bundle", "join-recorded", "launch-bootstrap", "create-shim", "create-mounts",
			"create-task", "create-recorded"},
		kinds: []string{"sandbox"},
		prepare: func(c *crash) {
			c.sandbox("pod", c.kind.shim)
			c.container("first", c.kind.forever, inSandbox("pod")).newTask().start()
			c.container("c", c.kind.forever, inSandbox("pod"))
		},
		act: tryTask,
		check: func(c *crash) {
			c.settle("c", 137)
			require.NotNil(c.t, c.settle("first", 137), "the sandbox's other container is gone")
			c.boxOf("first").remove()
			c.again("c")
			c.endSandbox("pod")
		},
	},
	"join that is given up": {
		points: []string{"undo-recorded"},
		kinds:  []string{"sandbox"},
		prepare: func(c *crash) {
			c.sandbox("pod", c.kind.shim)
			c.container("first", c.kind.forever, inSandbox("pod")).newTask().start()
			c.container("c", c.kind.forever, inSandbox("pod"))
			c.kind.shim.Update(func(s *shimtest.Scenario) {
				s.Rules = []shimtest.Rule{{Method: "Create", ID: "c", Hang: true, After: true}}
			})
		},
		act: func(c *crash, ctx context.Context, cl *containerd.Client) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			go tryTask(c, ctx, cl)
			c.kind.shim.Await(shimtest.KindRPC, "Create", 2) // the first's task is the one before
		},
		check: func(c *crash) {
			c.kind.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil })
			require.Nil(c.t, c.settle("c", 137), "a create whose caller gave up has become a task")
			require.NotNil(c.t, c.settle("first", 137), "the sandbox's other container is gone")
			c.boxOf("first").remove()
			c.again("c")
			c.endSandbox("pod")
		},
	},
	"sandbox": {
		points: []string{"create-bundle", "launch-recorded", "launch-started", "launch-bootstrap"},
		kinds:  []string{"sandbox"},
		act: func(c *crash, ctx context.Context, cl *containerd.Client) {
			sb, err := cl.NewSandbox(ctx, "pod", containerd.WithSandboxRuntime(c.kind.shim.Path, nil),
				containerd.WithSandboxSpec(&oci.Spec{}))
			if err == nil {
				_ = sb.Start(ctx)
			}
		},
		check: func(c *crash) {
			// The sandbox was never answered for: its caller ends it and makes it anew.
			sb, err := c.Client().LoadSandbox(c.ctx, "pod")
			require.NoError(c.t, err)
			require.NoError(c.t, sb.Shutdown(c.ctx))
			c.sandbox("pod", c.kind.shim)
			c.endSandbox("pod")
		},
	},
	"sandbox ended": {
		points:  []string{"clean-shim-delete", "clean-bundle", "clean-removed"},
		kinds:   []string{"sandbox"},
		prepare: func(c *crash) { c.sandbox("pod", c.kind.shim) },
		act: func(c *crash, ctx context.Context, cl *containerd.Client) {
			if sb, err := cl.LoadSandbox(ctx, "pod"); err == nil && sb.Stop(ctx) == nil {
				_ = sb.Shutdown(ctx)
			}
		},
		check: func(c *crash) {
			c.endSandbox("pod") // by its caller, once more
			c.sandbox("pod", c.kind.shim)
			c.endSandbox("pod")
		},
	},
}

func prepareStopped(c *crash) {
	log := c.watch()
	j := c.container("c", c.kind.seven).newTask()
	e := j.wait()
	j.start()
	require.EqualValues(c.t, 7, e.code())
	log.waitFor("/tasks/exit", "c")
}

// loadExec gets an exec of "c".
func loadExec(ctx context.Context, cl *containerd.Client, id string) (containerd.Process, error) {
	container, err := cl.LoadContainer(ctx, "c")
	if err != nil {
		return nil, err
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return nil, err
	}
	return task.LoadProcess(ctx, id, nil)
}

func prepareWithExec(c *crash) {
	j := c.container("c", c.kind.forever).newTask()
	j.start()
	j.exec("second", c.kind.execed...)
	c.victim = c.shimPid(testNS, "c")
}

// tryTask creates a task of "c" and starts it, as long as there is a daemon.
func tryTask(_ *crash, ctx context.Context, cl *containerd.Client) { tryTaskOf(ctx, cl, "c") }

func tryTaskOf(ctx context.Context, cl *containerd.Client, id string) {
	container, err := cl.LoadContainer(ctx, id)
	if err != nil {
		return
	}
	if task, err := container.NewTask(ctx, cio.NullIO); err == nil {
		_ = task.Start(ctx)
	}
}

// tryWholeLife creates a task of "c" that ends by itself, and deletes it, as long as there is a daemon.
func tryWholeLife(_ *crash, ctx context.Context, cl *containerd.Client) {
	container, err := cl.LoadContainer(ctx, "c")
	if err != nil {
		return
	}
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		return
	}
	ended, err := task.Wait(ctx)
	if err == nil && task.Start(ctx) == nil {
		<-ended
		_, _ = task.Delete(ctx)
	}
}

func (c *crash) killVictim() { _ = unix.Kill(c.victim, unix.SIGKILL) } // the daemon's death tells

func (c *crash) endSandbox(id string) {
	c.t.Helper()
	sb, err := c.Client().LoadSandbox(c.ctx, id)
	require.NoError(c.t, err, c.point)
	require.NoError(c.t, sb.Stop(c.ctx), c.point)
	require.NoError(c.t, sb.Shutdown(c.ctx), c.point)
}

// inGroup makes runc's shim, and the fake one, share one process per group.
func inGroup(name string) setupOpt {
	return with(oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": name}))
}
