// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"time"

	apitypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/mounts"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// TaskManager shows the tasks of a ShimManager as containerd's runtime. Safe for concurrent use.
type TaskManager struct {
	shims  *ShimManager
	layout bundle.Layout
}

var _ runtime.PlatformRuntime = (*TaskManager)(nil)

// NewTaskManager makes a task manager, with containerd's mount manager where there is one, and lets the takeover of
// what was found on disk begin in the background.
func NewTaskManager(manager mount.Manager, shims *ShimManager) (*TaskManager, error) {
	t := &TaskManager{shims: shims, layout: shims.config.Tasks.layout()}
	// The state directory must be passable for containers with a remapped root.
	if err := t.layout.Init(0o711); err != nil {
		return nil, err
	}
	shims.mounts = mounts.New(manager, shims.features)
	metrics.Follow(shims)
	shims.spawn(shims.restore)
	return t, nil
}

// ID of the plugin, as stock containerd's.
func (t *TaskManager) ID() string { return plugins.RuntimePluginV2.String() + ".task" }

// Create makes a task: bundle, shim, mounts, container. When it fails nothing of it is left.
func (t *TaskManager) Create(ctx context.Context, id string, opts runtime.CreateOpts) (runtime.Task, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	if err := bundle.ValidateID(ns, id); err != nil {
		return nil, err
	}
	if opts.Spec == nil {
		return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "cannot create task %s without a spec", id)
	}
	for again := false; ; again = true {
		i := newInstance(t.shims, t.layout, life.Task, ns, id, life.Launching)
		if err := t.shims.reserve(ctx, i); err != nil {
			return nil, err
		}
		cctx, w := watchCreate(ctx, i)
		err := t.shims.buildTask(cctx, i, opts, w)
		w.done(i, opts.Runtime, err)
		if err == nil {
			return &Task{i: i}, nil
		}
		t.shims.abandon(ctx, i)
		if again || !i.lostWarm(err) {
			return nil, errors.Wrapf(err, "cannot create task %s", id)
		}
		log.G(ctx).WithError(err).WithField("id", id).
			Info("the warm shim that a create was given has died; trying once more, with another")
	}
}

// lostWarm tells whether a create failed since the shim that it was given had died while it was idle, or just then. All
// of it is undone, or being undone with the id reserved.
func (i *Instance) lostWarm(err error) bool {
	p := i.process()
	died := errors.Is(err, shimclient.ErrConnectionLost) || errors.Is(err, shimproc.ErrDead)
	return died && i.takenWarm() && p != nil && !p.Verified().Alive()
}

// Get returns a task; NotFound for one that is unknown, dead or gone.
func (t *TaskManager) Get(ctx context.Context, id string) (runtime.Task, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	i, err := t.shims.get(ns, id, life.Task)
	if err != nil {
		return nil, err
	}
	return &Task{i: i}, nil
}

// Tasks lists the tasks of the context's namespace, or of all. What is listed of a namespace has one State, for all of
// them at once: the first that is asked for has all asked for, at the same time, and each answers with what that
// brought. Only containerd's list wants states; its metrics do not, nor does it at its start, when it looks for what
// there is to monitor.
func (t *TaskManager) Tasks(ctx context.Context, all bool) ([]runtime.Task, error) {
	if !all {
		ns, err := namespaces.NamespaceRequired(ctx)
		if err != nil {
			return nil, err
		}
		return newListing(t.shims.list(ns, life.Task)), nil
	}
	// Each by itself: those who list all keep some of them for as long as they like.
	var tasks []runtime.Task
	for _, i := range t.shims.list("", life.Task) {
		tasks = append(tasks, &Task{i: i})
	}
	return tasks, nil
}

// Delete removes a task whose process has exited and returns the exit.
func (t *TaskManager) Delete(ctx context.Context, id string) (*runtime.Exit, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	i, err := t.shims.get(ns, id, life.Task)
	if err != nil {
		return nil, err
	}
	return i.delete(ctx)
}

// PluginInfo answers a containerd.types.RuntimeRequest by asking the shim's binary, each time, and the questions of
// package inspect. Any other request is NotImplemented.
func (t *TaskManager) PluginInfo(ctx context.Context, request any) (any, error) {
	if answer, known, err := t.shims.inspect(ctx, request); known {
		return answer, err
	}
	req, ok := request.(*apitypes.RuntimeRequest)
	if !ok {
		return nil, errors.Wrapf(errdefs.ErrNotImplemented, "request of type %T", request)
	}
	b, err := t.shims.resolve(ctx, req.RuntimePath)
	if err != nil {
		return nil, err
	}
	return t.shims.launcher.Info(ctx, b, req.Options)
}

// newListing is the list of some instances, for a caller who will ask for their states.
func newListing(all []*Instance) []runtime.Task {
	l := &listing{tasks: make([]Task, len(all))}
	tasks := make([]runtime.Task, len(all))
	for n, i := range all {
		t := &l.tasks[n]
		t.i, t.list = i, l
		tasks[n] = t
	}
	return tasks
}

// listPatience is how long a list waits for the shims, all at once; what is not answered by then is answered from the
// record.
const listPatience = 25 * time.Millisecond

// listing is the tasks of one list. They are one piece of memory, since no caller keeps one of them for long.
type listing struct {
	tasks []Task
	once  sync.Once
}

// ask gets all states, once. Those that the records are not known to hold are asked for; what is not answered soon is
// answered from the record after all. A caller who leaves does not spoil it for the others.
func (l *listing) ask(ctx context.Context) {
	l.once.Do(func() {
		ctx := context.WithoutCancel(ctx)
		var wg sync.WaitGroup
		for n := range l.tasks {
			t := &l.tasks[n]
			t.i.read()
			if s, ok := t.i.current((*ledger.Ledger).CurrentOften); ok {
				t.asked.state = s
				continue
			}
			wg.Go(func() { t.asked.state, t.asked.err = t.i.listedState(ctx) })
		}
		wg.Wait()
	})
}

func (i *Instance) listedState(ctx context.Context) (runtime.State, error) {
	s, err := i.stateNow(ctx, listPatience)
	if errdefs.IsDeadlineExceeded(err) {
		// The record cannot stand for it, as for a created task: containerd's list would leave it out.
		s, err = i.stateNow(ctx, 0)
	}
	return s, err
}
