// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// Task is one container's task. It is a view of an instance: cheap, and valid as long as the instance is. Safe for
// concurrent use.
type Task struct {
	i *Instance
	// list is what the task came with; nil outside of lists. asked is what it got for the task's state.
	list  *listing
	asked answer
}

// answer to a State.
type answer struct {
	state runtime.State
	err   error
}

var _ runtime.Task = (*Task)(nil)

// ID of the container.
func (t *Task) ID() string { return t.i.id }

// Namespace of the container.
func (t *Task) Namespace() string { return t.i.namespace }

// call waits for a restore to come to this task, then calls its shim.
func (t *Task) call(ctx context.Context, mode shimproc.Mode, f func(context.Context, *shimclient.Task) error) error {
	if err := t.i.settled(ctx, mode); err != nil {
		return err
	}
	return t.i.call(ctx, mode, f)
}

// PID of the init process, as the shim told it at create or start. Where it was not told (a restore from a checkpoint)
// it is asked.
func (t *Task) PID(ctx context.Context) (uint32, error) {
	if pid := t.i.ledger.Pid(""); pid != 0 {
		return pid, nil
	}
	var r *taskapi.ConnectResponse
	err := t.call(ctx, shimproc.Repeatable, func(ctx context.Context, c *shimclient.Task) (err error) {
		r, err = c.Connect(ctx, &taskapi.ConnectRequest{ID: t.i.id})
		return err
	})
	if err != nil {
		return 0, err
	}
	t.i.learnPid(r.TaskPid)
	return r.TaskPid, nil
}

// Start the container's process.
func (t *Task) Start(ctx context.Context) error {
	if err := t.i.settled(ctx, shimproc.Once); err != nil {
		return err
	}
	return t.i.ledger.Changing(tasktypes.Status_RUNNING, func() error {
		pid, err := t.i.sendStart(ctx, "")
		if err == nil {
			t.i.learnPid(pid)
		}
		return err
	})
}

// Kill sends a signal to the init process, or to all processes. It goes out even while the shim does not answer. A
// SIGKILL that the shim leaves unanswered for the whole deadline, or that cannot be sent within the load timeout, goes
// to the container's init directly.
func (t *Task) Kill(ctx context.Context, signal uint32, all bool) error {
	err := t.call(ctx, shimproc.Forced, func(ctx context.Context, c *shimclient.Task) error {
		return c.Kill(ctx, &taskapi.KillRequest{ID: t.i.id, Signal: signal, All: all})
	})
	if signal == uint32(syscall.SIGKILL) && t.i.ignores(err) && t.i.killInit(ctx) {
		return nil
	}
	return err
}

// Pause the container.
func (t *Task) Pause(ctx context.Context) error {
	return t.i.ledger.Changing(tasktypes.Status_PAUSED, func() error {
		return t.call(ctx, shimproc.Once, func(ctx context.Context, c *shimclient.Task) error {
			return c.Pause(ctx, &taskapi.PauseRequest{ID: t.i.id})
		})
	})
}

// Resume the container.
func (t *Task) Resume(ctx context.Context) error {
	return t.i.ledger.Changing(tasktypes.Status_RUNNING, func() error {
		return t.call(ctx, shimproc.Once, func(ctx context.Context, c *shimclient.Task) error {
			return c.Resume(ctx, &taskapi.ResumeRequest{ID: t.i.id})
		})
	})
}

// Pids lists the processes of the container.
func (t *Task) Pids(ctx context.Context) ([]runtime.ProcessInfo, error) {
	var r *taskapi.PidsResponse
	err := t.call(ctx, shimproc.Repeatable, func(ctx context.Context, c *shimclient.Task) (err error) {
		r, err = c.Pids(ctx, &taskapi.PidsRequest{ID: t.i.id})
		return err
	})
	if err != nil {
		return nil, err
	}
	pids := make([]runtime.ProcessInfo, 0, len(r.Processes))
	for _, p := range r.Processes {
		info := runtime.ProcessInfo{Pid: p.Pid}
		if p.Info != nil { // a typed nil would no longer be nil to the caller
			info.Info = p.Info
		}
		pids = append(pids, info)
	}
	return pids, nil
}

// ResizePty sets the size of the terminal.
func (t *Task) ResizePty(ctx context.Context, size runtime.ConsoleSize) error {
	return t.resize(ctx, "", size)
}

func (t *Task) resize(ctx context.Context, execID string, size runtime.ConsoleSize) error {
	return t.call(ctx, shimproc.Once, func(ctx context.Context, c *shimclient.Task) error {
		return c.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: t.i.id, ExecID: execID, Width: size.Width,
			Height: size.Height})
	})
}

// CloseIO closes stdin.
func (t *Task) CloseIO(ctx context.Context) error { return t.closeIO(ctx, "") }

func (t *Task) closeIO(ctx context.Context, execID string) error {
	return t.call(ctx, shimproc.Once, func(ctx context.Context, c *shimclient.Task) error {
		return c.CloseIO(ctx, &taskapi.CloseIORequest{ID: t.i.id, ExecID: execID, Stdin: true})
	})
}

// Checkpoint writes the container's state to a path.
func (t *Task) Checkpoint(ctx context.Context, path string, options *anypb.Any) error {
	return t.i.ledger.Changing(tasktypes.Status_UNKNOWN, func() error {
		return t.call(ctx, shimproc.Once, func(ctx context.Context, c *shimclient.Task) error {
			return c.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: t.i.id, Path: path, Options: options})
		})
	})
}

// Update sets resources.
func (t *Task) Update(ctx context.Context, resources *anypb.Any, annotations map[string]string) error {
	return t.call(ctx, shimproc.Once, func(ctx context.Context, c *shimclient.Task) error {
		return c.Update(ctx, &taskapi.UpdateTaskRequest{ID: t.i.id, Resources: resources, Annotations: annotations})
	})
}

// Stats returns the runtime's metrics. containerd's collector of metrics keeps the first handle that it is given of an
// id until a client deletes the task. A task that was dead at the daemon's start is deleted by no client, so its handle
// would hide every later task of the id. Therefore the handle of a task that is gone answers for the task that has the
// id now, NotFound where there is none.
func (t *Task) Stats(ctx context.Context) (*anypb.Any, error) {
	t = t.current()
	var r *taskapi.StatsResponse
	err := t.call(ctx, shimproc.Repeatable, func(ctx context.Context, c *shimclient.Task) (err error) {
		r, err = c.Stats(ctx, &taskapi.StatsRequest{ID: t.i.id})
		return err
	})
	if err != nil {
		return nil, err
	}
	return r.Stats, nil
}

// current is the task itself or, once it is gone, the one that has its id now.
func (t *Task) current() *Task {
	if st, _ := t.i.watch(); st.IsListed() {
		return t
	}
	next, err := t.i.m.get(t.i.namespace, t.i.id, life.Task)
	if err != nil {
		return t
	}
	return &Task{i: next}
}

// Wait for the exit of the init process.
func (t *Task) Wait(ctx context.Context) (*runtime.Exit, error) { return t.i.wait(ctx, "") }

// State of the init process. Where the shim does not answer it is what was last known, as long as the container is
// known to run or to have exited: CRI and the restart monitor take a State that fails for a dead container and kill it.
func (t *Task) State(ctx context.Context) (runtime.State, error) {
	if t.list != nil {
		t.list.ask(ctx)
		return t.asked.state, t.asked.err
	}
	if s, ok := t.i.fresh(); ok {
		return s, nil
	}
	return t.i.stateNow(ctx, 0)
}

// listPatience is how long a list waits for the shims, all at once; what is not answered by then is answered from the
// record.
const listPatience = 25 * time.Millisecond

// listing is the tasks of one list. They are one piece of memory, since no caller keeps one of them for long.
type listing struct {
	tasks []Task
	once  sync.Once
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
