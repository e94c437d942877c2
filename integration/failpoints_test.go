// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// failpointEnv names the failpoint at which the daemon is to die.
const failpointEnv = "SHIMYARD_FAILPOINT"

// TestFailpoints lets the daemon die between any two steps that leave
// something behind, and looks at what the next one makes of it.
func TestFailpoints(t *testing.T) {
	t.Parallel()
	needRoot(t)
	binary := tool(t, kit.FailpointDaemon)
	names := failpointNames(t)
	known := map[string]bool{}
	for name, s := range crashScenarios {
		for _, kind := range s.kinds {
			points := s.pointsOf(kind)
			for _, point := range points {
				known[point] = true
			}
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				c := newCrash(t, kind, binary)
				for _, point := range points {
					require.Contains(t, names, point, "the table names a failpoint that is not in the source")
					require.True(t, c.run(s, point), "%s: the scenario does not reach the failpoint", point)
				}
			})
		}
	}
	for _, point := range names {
		if known[point] {
			continue
		}
		// A new one: some scenario must pass it.
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			for name, s := range crashScenarios {
				for _, kind := range s.kinds {
					c := newCrash(t, kind, binary)
					if c.run(s, point) {
						t.Logf("reached by %q with %s; put it into the table, which saves the search", name, kind)
						return
					}
					if c.kind.shim != nil {
						c.kind.shim.AllowLeftovers()
					}
					c.Abandon()
				}
			}
			t.Errorf("%s: no scenario reaches the failpoint", point)
		})
	}
}

// failpointNames are those in the source of manager and of all packages below it.
func failpointNames(t *testing.T) []string {
	t.Helper()
	var names []string
	root := filepath.Join(filepath.Dir(kit.Module), "manager")
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		names = append(names, failpointsIn(t, path)...)
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, names)
	slices.Sort(names)
	return slices.Compact(names)
}

// failpointsIn are the names in one file.
func failpointsIn(t *testing.T, file string) (names []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	require.NoError(t, err)
	ast.Inspect(parsed, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		f, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if pkg, ok := f.X.(*ast.Ident); ok && pkg.Name == "failpoint" {
			lit, ok := call.Args[0].(*ast.BasicLit)
			require.True(t, ok, "%s: a failpoint without a literal name", file)
			name, err := strconv.Unquote(lit.Value)
			require.NoError(t, err)
			names = append(names, name)
		}
		return true
	})
	return names
}

func newCrash(t *testing.T, kind, binary string) *crash {
	t.Helper()
	k := newCrashKind(t, kind)
	c := &crash{node: newNode(t, append(k.changes, func(o *daemon.Options) { o.Binary = binary })...), kind: k}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the last failpoint was %s", c.point)
		}
	})
	return c
}

// reachGrace is how long a daemon may take on its own to a failpoint, once the
// caller has been answered.
const reachGrace = 8 * time.Second

// run lets the daemon die at a point of the scenario and checks what is left.
// False when it does not die.
func (c *crash) run(s *crashScenario, point string) bool {
	c.t.Helper()
	c.point = point
	c.freshContext()
	if s.prepare != nil {
		s.prepare(c)
	}
	if s.crashed {
		c.Kill()
	} else {
		c.Stop()
	}
	if s.down != nil {
		s.down(c)
	}
	c.Reconfigure(func(o *daemon.Options) { o.Env = []string{failpointEnv + "=" + point} })
	acted := make(chan struct{})
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	if c.RunDoomed() && s.act != nil {
		client := c.Client()
		go func() {
			defer close(acted)
			s.act(c, ctx, client)
		}()
	} else {
		close(acted)
	}
	if !c.Died(acted, reachGrace) {
		return false
	}
	cancel()
	<-acted
	c.readRecord()
	c.Reconfigure(func(o *daemon.Options) { o.Env = nil })
	c.Run()
	s.check(c)
	require.Empty(c.t, c.Leftovers(), "after %s", point)
	c.Stop()
	c.Run()
	return true
}

// freshContext renews the patience, which is meant for one point.
func (c *crash) freshContext() { c.ctx = c.context(testNS) }

// readRecord keeps what the dead daemon had written down of "c".
func (c *crash) readRecord() {
	c.t.Helper()
	c.record, c.known = nil, false
	b, err := bundle.Layout{State: filepath.Dir(filepath.Dir(c.Bundle(testNS, "c"))), Root: c.Dir}.Open(testNS, "c")
	if errdefs.IsNotFound(err) {
		return
	}
	require.NoError(c.t, err)
	c.known = true
	if c.record, err = b.ReadRecord(); !errdefs.IsNotFound(err) {
		require.NoError(c.t, err)
	}
}

// settle waits until an id is either a task whose state is known, or nothing. A
// task is used, ended and deleted, and returned; code is the exit that it must
// have in the end. The container stays.
func (c *crash) settle(id string, code uint32) *job {
	c.t.Helper()
	var j *job
	require.Eventually(c.t, func() bool {
		b := c.boxOf(id)
		task, err := b.Task(c.ctx, nil)
		if errdefs.IsNotFound(err) {
			return c.bundleGone(id)
		}
		if err != nil {
			return false
		}
		// Status may be answered from the record; this one waits until the shim was asked.
		if _, err := task.Pids(c.ctx); errdefs.IsUnavailable(err) {
			return false
		}
		if _, err := task.Status(c.ctx); err != nil {
			return false
		}
		j = &job{Task: task, b: b}
		return true
	}, patience, tick, "%s: %s is neither a task nor gone", c.point, id)
	if j == nil {
		return nil
	}
	if j.status() == containerd.Created {
		j.start()
	}
	c.use(j, code)
	return j
}

// use shows that a task can be used, ends and deletes it.
func (c *crash) use(j *job, code uint32) {
	c.t.Helper()
	if j.status() == containerd.Running {
		_, five := j.execOutput("check", c.kind.exec...)
		require.EqualValues(c.t, 5, five, c.point)
		e := j.wait()
		require.NoError(c.t, j.Kill(c.ctx, 9), c.point)
		require.EqualValues(c.t, 137, e.code(), c.point)
	}
	require.Equal(c.t, code, j.wait().code(), "%s: what Wait says of %s", c.point, j.ID())
	s, err := j.Status(c.ctx)
	require.NoError(c.t, err, c.point)
	require.Equal(c.t, code, s.ExitStatus, "%s: what State says of %s", c.point, j.ID())
	deleted, err := j.Delete(c.ctx)
	require.NoError(c.t, err, c.point)
	require.Equal(c.t, code, deleted.ExitCode(), "%s: what Delete says of %s", c.point, j.ID())
}

func (c *crash) bundleGone(id string) bool {
	found, _ := filepath.Glob(c.Bundle(testNS, id))
	return len(found) == 0
}

// again uses the id once more, and removes the container.
func (c *crash) again(id string) {
	c.t.Helper()
	b := c.boxOf(id)
	j := b.newTask()
	j.start()
	if c.kind.shim == nil || j.status() == containerd.Running {
		e := j.wait()
		if err := j.Kill(c.ctx, 9); !errdefs.IsNotFound(err) {
			require.NoError(c.t, err, c.point)
		}
		e.code()
	}
	_, err := j.Delete(c.ctx)
	require.NoError(c.t, err, c.point)
	b.remove()
}

// checkTold is for a container whose shim died, with an exec in it: the exits
// and the deletion are told unless the dead daemon had marked them as told.
func checkTold(c *crash) {
	c.t.Run(c.point, func(t *testing.T) { // whose end is the subscription's
		n := *c.node
		n.t = t
		c.checkTold(t, n.watch())
	})
	require.False(c.t, c.t.Failed())
	_, err := c.load("c").Task(c.ctx, nil)
	require.ErrorIs(c.t, err, errdefs.ErrNotFound)
	c.again("c")
}

func (c *crash) checkTold(t *testing.T, log *eventLog) {
	want := map[string]int{"second": 1, "c": 1, "deleted": 1}
	if !c.known {
		want = map[string]int{}
	}
	if r := c.record; r != nil && r.Task != nil && r.Task.Exit != nil {
		if x := r.Execs["second"]; x != nil && x.Exit != nil && x.Exit.Told {
			delete(want, "second")
		}
		if r.Task.Exit.Told {
			delete(want, "c")
		}
		if r.Task.Exit.DeleteTold {
			delete(want, "deleted")
		}
	}
	told := func() map[string]int {
		got := map[string]int{}
		for _, e := range log.of("c") {
			if e.exit != nil {
				got[e.exit.ID]++
			}
			if e.deleted != nil {
				got["deleted"]++
			}
		}
		return got
	}
	require.Eventually(t, func() bool { return len(told()) >= len(want) && c.bundleGone("c") }, patience, tick,
		"told is %v, not %v", told(), want)
	require.Equal(t, want, told())
	for _, e := range log.of("c") {
		if e.exit != nil && e.exit.ID == "c" {
			require.EqualValues(t, 137, e.exit.ExitStatus)
		}
		if e.deleted != nil {
			require.EqualValues(t, 137, e.deleted.ExitStatus)
		}
	}
}
