// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

const (
	testNS     = "test"
	runcName   = plugins.RuntimeRuncV2
	snapshoter = "overlayfs"
	// warmIdle is the default of these tests.
	warmIdle = ""
)

// node is a daemon with the test image in it, and what a test does with it.
type node struct {
	*daemon.Daemon
	t   *testing.T
	ctx context.Context // in namespace testNS, ends with the test's patience
}

// change is a deviation from the daemon that newNode starts.
type change func(*daemon.Options)

// newNode starts a daemon, imports the image and takes the baseline of the
// leftovers check after a first container.
func newNode(t *testing.T, changes ...change) *node {
	t.Helper()
	needRoot(t)
	o := daemon.Options{
		Binary: kit.daemon,
		Path:   []string{filepath.Dir(kit.shim), filepath.Dir(kit.runc)},
	}
	for _, c := range changes {
		c(&o)
	}
	n := &node{Daemon: daemon.Start(t, o), t: t}
	n.ctx = n.context(testNS)
	n.importImage(n.ctx)
	n.warmUp()
	return n
}

func (n *node) context(ns string) context.Context {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), ns), 4*daemon.Patience)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) importImage(ctx context.Context) {
	n.t.Helper()
	_, err := n.Client().Import(ctx, bytes.NewReader(kit.image))
	require.NoError(n.t, err)
	img, err := n.Client().GetImage(ctx, imageName)
	require.NoError(n.t, err)
	require.NoError(n.t, img.Unpack(ctx, snapshoter))
}

// warmUp runs one container to its end and remembers what the daemon holds
// then.
func (n *node) warmUp() {
	n.t.Helper()
	c := n.create("warm-up", spec("true"))
	task := c.newTask()
	exit := task.wait()
	task.start()
	require.EqualValues(n.t, 0, exit.code())
	_, err := task.Delete(n.ctx)
	require.NoError(n.t, err)
	c.remove()
	n.Baseline()
}

// box is a container of a test. It is deleted when the test ends.
type box struct {
	containerd.Container
	n   *node
	ctx context.Context
}

// setup is what create makes a container with.
type setup struct {
	ns       string
	runtime  string
	options  *options.Options
	spec     []oci.SpecOpts
	snapshot containerd.NewContainerOpts // nil: a plain one
	extra    []containerd.NewContainerOpts
}

type setupOpt func(*setup)

// spec sets the command.
func spec(args ...string) setupOpt { return with(oci.WithProcessArgs(args...)) }

// shell makes the command a shell script.
func shell(script string) setupOpt { return spec("sh", "-c", script) }

// forever is a command that runs until it is killed.
func forever() setupOpt { return spec("sleep", "1000000") }

func with(o ...oci.SpecOpts) setupOpt { return func(s *setup) { s.spec = append(s.spec, o...) } }

func inNamespace(ns string) setupOpt { return func(s *setup) { s.ns = ns } }

func withRuntime(name string) setupOpt { return func(s *setup) { s.runtime = name } }

func withOptions(change func(*options.Options)) setupOpt {
	return func(s *setup) { change(s.options) }
}

// create makes a container (its metadata, spec and snapshot).
func (n *node) create(id string, opts ...setupOpt) *box {
	n.t.Helper()
	b, err := n.tryCreate(id, opts...)
	require.NoError(n.t, err)
	return b
}

func (n *node) tryCreate(id string, opts ...setupOpt) (*box, error) {
	s := setup{
		ns: testNS, runtime: runcName,
		options: &options.Options{Root: n.RuncRoot(), BinaryName: kit.runc},
	}
	for _, o := range opts {
		o(&s)
	}
	b := &box{n: n, ctx: n.ctx}
	if s.ns != testNS {
		b.ctx = n.context(s.ns)
	}
	c := n.Client()
	img, err := c.GetImage(b.ctx, imageName)
	if err != nil {
		return nil, err
	}
	specs := append([]oci.SpecOpts{
		oci.WithImageConfig(img),
		oci.WithCgroup(n.cgroup(s.ns, id)),
	}, s.spec...)
	if s.snapshot == nil {
		s.snapshot = containerd.WithNewSnapshot(id, img)
	}
	all := []containerd.NewContainerOpts{
		containerd.WithImage(img), containerd.WithSnapshotter(snapshoter), s.snapshot,
		containerd.WithNewSpec(specs...),
	}
	if s.options != nil {
		all = append(all, containerd.WithRuntime(s.runtime, s.options))
	} else {
		all = append(all, containerd.WithRuntime(s.runtime, nil))
	}
	b.Container, err = c.NewContainer(b.ctx, id, append(all, s.extra...)...)
	if err != nil {
		return nil, err
	}
	n.t.Cleanup(b.clean)
	return b, nil
}

// clean removes what a failed test left of the container; a test that passes
// has done so itself, or leaves a running task to it.
func (b *box) clean() {
	c := b.n.Client()
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), b.namespace()), daemon.Patience)
	defer cancel()
	container, err := c.LoadContainer(ctx, b.ID())
	if err != nil {
		return
	}
	if task, err := container.Task(ctx, nil); err == nil {
		_, _ = task.Delete(ctx, containerd.WithProcessKill) // the leftovers check tells
	}
	_ = container.Delete(ctx, containerd.WithSnapshotCleanup)
}

func (b *box) namespace() string {
	ns, _ := namespaces.Namespace(b.ctx)
	return ns
}

// remove deletes the container; its task has been deleted.
func (b *box) remove() {
	b.n.t.Helper()
	require.NoError(b.n.t, b.Delete(b.ctx, containerd.WithSnapshotCleanup))
}

// reload gets the container through the daemon's present client.
func (b *box) reload() *box {
	b.n.t.Helper()
	c, err := b.n.Client().LoadContainer(b.ctx, b.ID())
	require.NoError(b.n.t, err)
	return &box{Container: c, n: b.n, ctx: b.ctx}
}

// job is a task of a test.
type job struct {
	containerd.Task
	b *box
}

func (b *box) newTask(opts ...containerd.NewTaskOpts) *job {
	b.n.t.Helper()
	return b.newTaskIO(cio.NullIO, opts...)
}

func (b *box) newTaskIO(io cio.Creator, opts ...containerd.NewTaskOpts) *job {
	b.n.t.Helper()
	task, err := b.NewTask(b.ctx, io, opts...)
	require.NoError(b.n.t, err)
	return &job{Task: task, b: b}
}

// run creates a container with a task and starts it.
func (n *node) run(id string, opts ...setupOpt) *job {
	n.t.Helper()
	j := n.create(id, opts...).newTask()
	j.start()
	return j
}

func (j *job) start() {
	j.b.n.t.Helper()
	require.NoError(j.b.n.t, j.Start(j.b.ctx))
}

func (j *job) wait() *exit { j.b.n.t.Helper(); return waitFor(j.b.n.t, j.b.ctx, j) }

func (j *job) status() containerd.ProcessStatus {
	j.b.n.t.Helper()
	s, err := j.Status(j.b.ctx)
	require.NoError(j.b.n.t, err)
	return s.Status
}

// waitFunction is where the daemon is while a Wait is pending.
const waitFunction = "services/tasks.(*local).Wait"

// waiting is wait that returns only once the daemon has the call: the client
// sends it after it has returned.
func (j *job) waiting(of ...containerd.Process) *exit {
	n := j.b.n
	n.t.Helper()
	before := n.Inside(waitFunction)
	var p containerd.Process = j
	if len(of) == 1 {
		p = of[0]
	}
	e := waitFor(n.t, j.b.ctx, p)
	require.Eventually(n.t, func() bool { return n.Inside(waitFunction) > before }, patience, tick,
		"the daemon has no Wait")
	return e
}

// finish kills the task, waits for it, and deletes it and its container.
func (j *job) finish() {
	t := j.b.n.t
	t.Helper()
	e := j.wait()
	require.NoError(t, j.Kill(j.b.ctx, 9))
	require.EqualValues(t, 137, e.code())
	j.remove()
}

// remove deletes the stopped task and its container, and returns what Delete
// answered.
func (j *job) remove() *containerd.ExitStatus {
	t := j.b.n.t
	t.Helper()
	status, err := j.Delete(j.b.ctx)
	require.NoError(t, err)
	j.b.remove()
	return status
}

// exit is the end of a process that a test waits for.
type exit struct {
	t  *testing.T
	ch <-chan containerd.ExitStatus
}

// waitFor asks at once, so that no exit is missed, and answers later.
func waitFor(t *testing.T, ctx context.Context, p containerd.Process) *exit {
	t.Helper()
	ch, err := p.Wait(ctx)
	require.NoError(t, err)
	return &exit{t: t, ch: ch}
}

func (e *exit) status() containerd.ExitStatus {
	e.t.Helper()
	select {
	case s := <-e.ch:
		return s
	case <-time.After(daemon.Patience):
		e.t.Fatal("the process does not end")
		panic("unreachable")
	}
}

func (e *exit) code() uint32 {
	e.t.Helper()
	s := e.status()
	require.NoError(e.t, s.Error())
	return s.ExitCode()
}

// cgroup is the one of a container: directly below the daemon's, so that every
// directory there is a container's.
func (n *node) cgroup(ns, id string) string { return filepath.Join(n.Cgroup(), ns+"-"+id) }

// tryRun is run for use in goroutines, where a test cannot end.
func (n *node) tryRun(id string, opts ...setupOpt) (*job, error) {
	b, err := n.tryCreate(id, opts...)
	if err != nil {
		return nil, err
	}
	task, err := b.NewTask(b.ctx, cio.NullIO)
	if err != nil {
		return nil, err
	}
	return &job{Task: task, b: b}, task.Start(b.ctx)
}
