// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
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
	asked stateAnswer
}

// stateAnswer is what a State was answered with.
type stateAnswer struct {
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

// waitPause is between two Wait calls to a shim that answers them with an error that says nothing about the process.
const waitPause = time.Second

// wait returns the exit of a task's init ("") or of an exec.
func (i *Instance) wait(ctx context.Context, execID string) (*runtime.Exit, error) {
	return i.waitFor(ctx, execID, func(ctx context.Context, l *shimproc.Link) (*bundle.Exit, error) {
		r, err := l.Task.Wait(ctx, &taskapi.WaitRequest{ID: i.id, ExecID: execID})
		if err != nil {
			return nil, err
		}
		return &bundle.Exit{Pid: i.ledger.Pid(execID), Status: r.ExitStatus, At: ledger.TimeOf(r.ExitedAt)}, nil
	})
}

// waitFor returns an exit that is on record, or that ask was answered with. It fails only for what the caller did (its
// context ended) and for what the shim says of the process (no such one). It outlasts stalls, lost connections,
// restores and the stop of the daemon: CRI takes a Wait that fails for exit 255 and kills the container.
func (i *Instance) waitFor(ctx context.Context, execID string, ask waiter) (*runtime.Exit, error) {
	var exit *runtime.Exit
	var verdict error
	err := await.Until(ctx, func() (await.Wake, bool) {
		// Taken before anything is looked at, so that no change is missed between the look and the sleep.
		st, changed := i.watch()
		l, moved := i.link()
		news := i.ledger.News()
		if e := i.ledger.Exit(execID); e != nil {
			exit = ledger.ToExit(e)
			return await.Wake{}, true
		}
		if st == life.Gone || st == life.Reaping || st == life.Dead && i.ledger.Exit("") != nil {
			// An exec that is not known: with init's exit those of all execs are known.
			verdict = life.ErrNone(i.kind, i.id)
			return await.Wake{}, true
		}
		if st != life.Dead && l != nil {
			var err error
			exit, err = i.askWait(ctx, l, execID, ask)
			switch {
			case exit != nil:
				return await.Wake{}, true
			case i.endsWait(ctx, err):
				verdict = err
				return await.Wake{}, true
			case !errors.Is(err, shimclient.ErrConnectionLost) && !errors.Is(err, errWoken):
				moved = await.After(waitPause)
			}
		}
		return await.Wake{changed, moved, news}, false
	})
	if err != nil {
		return nil, errors.Wrapf(err, "waiting for the exit of %s", i.id)
	}
	return exit, verdict
}

// waiter sends one Wait.
type waiter func(context.Context, *shimproc.Link) (*bundle.Exit, error)

// errWoken: a Wait call was ended since there is news.
var errWoken = errors.New("woken")

// askWait sends one Wait, which ends early when there is news. What it brings is recorded.
func (i *Instance) askWait(ctx context.Context, l *shimproc.Link, execID string, ask waiter) (*runtime.Exit, error) {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer i.ledger.OnWake(execID, cancel)()
	x := i.ledger.ExecOf(execID)
	if i.ledger.Exit(execID) != nil {
		return nil, errWoken
	}
	e, err := ask(wctx, l)
	if err != nil {
		if wctx.Err() != nil && ctx.Err() == nil {
			return nil, errWoken
		}
		return nil, err
	}
	if execID == "" {
		i.ledger.LearnExit(*e)
		return ledger.ToExit(i.ledger.Exit("")), nil
	}
	return ledger.ToExit(i.ledger.LearnExecExit(x, *e)), nil
}

// endsWait tells the errors that a Wait ends with: the caller's context, and the shim's word that there is no such
// process or method.
func (i *Instance) endsWait(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	if errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) || errdefs.IsInvalidArgument(err) {
		st, _ := i.watch()
		return st == life.Running && !i.processDead() && i.ledger.Exit("") == nil
	}
	return false
}
