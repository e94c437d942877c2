// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"
	"slices"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
)

// subscribersBack is when, after a start of the daemon, clients that follow events can have come back.
const subscribersBack = 3 * time.Second

// tell says for a dead shim what it can no longer say: exits of execs, the exit of init, the deletion, each only if
// it was not said.
func (i *Instance) tell() {
	i.tellExits("dead_shim")
	e := i.ledger.Exit("")
	if e == nil || e.DeleteTold {
		return
	}
	i.m.publish(i.lasting(), runtime.TaskDeleteEventTopic, &apievents.TaskDelete{
		ContainerID: i.id, Pid: e.Pid, ExitStatus: e.Status, ExitedAt: timestamppb.New(e.At),
	})
	failpoint.Here("tell-delete")
	i.ledger.MarkDeletionTold()
}

// tellExits tells what is known and untold of exits, those of execs first. What is told is in the bundle before it is
// told, and that it was told is marked there before the next thing is said: a crash in between repeats the same words.
func (i *Instance) tellExits(by string) {
	for _, execID := range i.ledger.Untold() {
		e, ok := i.ledger.CountTry(execID)
		if !ok {
			continue
		}
		failpoint.Here("tell-counted")
		if execID == "" {
			i.tellOOMOnce()
		}
		i.publishExit(execID, e)
		metrics.ExitTold(by)
		failpoint.Here("tell-exit")
		i.ledger.MarkTold(execID)
	}
}

// lasting is the instance's context without the manager's end: what has begun to be told is told.
func (i *Instance) lasting() context.Context { return i.scope(context.WithoutCancel(i.m.ctx)) }

func (i *Instance) publishExit(execID string, e bundle.Exit) {
	id := execID
	if id == "" {
		id = i.id
	}
	i.m.publish(i.lasting(), runtime.TaskExitEventTopic, &apievents.TaskExit{
		ContainerID: i.id, ID: id, Pid: e.Pid, ExitStatus: e.Status, ExitedAt: timestamppb.New(e.At),
	})
}

func (m *ShimManager) publish(ctx context.Context, topic string, e events.Event) {
	if err := m.config.Events.Publish(ctx, topic, e); err != nil {
		log.G(ctx).WithError(err).WithField("topic", topic).Error("cannot publish an event for a dead shim")
	}
}

// repeat tells exits, and OOM kills before them, again until none is owed or the task is deleted. While a Delete is
// under way it waits for what becomes of that.
func (i *Instance) repeat() {
	// At the end of the daemon the next start goes on.
	_ = await.UntilDue(i.m.ctx, func() (await.Wake, time.Duration, bool) {
		news := i.ledger.News()
		for {
			s, changed, due, ok := i.due((*ledger.Ledger).RepeatDue)
			wait := time.Until(due)
			switch {
			case !ok:
				return await.Wake{}, 0, true
			case s == life.Deleting:
				return await.Wake{changed, news}, 0, false // until that has succeeded or failed
			case wait > 0:
				return await.Wake{changed, news}, wait, false
			}
			i.repeatNow()
		}
	})
}

// due asks the ledger when something is to be told; changed is closed when s is not the state any more. One step with
// the state: a Delete that fails has what is untold told later, in the step in which it gives the task back, and would
// find that still being seen to by one who saw it being deleted and is about to give that up.
func (i *Instance) due(
	ask func(*ledger.Ledger, life.State) (time.Time, bool),
) (s life.State, changed <-chan struct{}, due time.Time, ok bool) {
	_, changed = i.watch() // before the step: no change is missed
	i.inStep(func(now life.State) {
		s = now
		due, ok = ask(i.ledger, now)
	})
	return s, changed, due, ok
}

// repeatNow tells again what is due.
func (i *Instance) repeatNow() {
	oom, due := i.ledger.TakeRepeats()
	failpoint.Here("repeat-counted")
	i.ledger.NoteOOM()
	end, ok := i.beginSpeaking()
	if !ok {
		return
	}
	defer end()
	i.tellOOMIf(oom)
	for _, id := range due {
		if id == "" {
			i.tellOOM()
		}
		if e := i.ledger.Exit(id); e != nil {
			i.publishExit(id, *e)
			metrics.ExitTold("repeat")
		}
	}
}

// beginSpeaking tells whether something may be told of the task, until end is called. One step with onDelete's: either
// the Delete waits for what is told, or nothing is told any more.
func (i *Instance) beginSpeaking() (end func(), ok bool) {
	i.inStep(func(s life.State) { end, ok = i.ledger.BeginSpeaking(s) })
	return end, ok
}

// tellOOM tells that init was ended for lack of memory, if it is known to have been.
func (i *Instance) tellOOM() { i.tellOOMIf(i.ledger.TakeOOM(true)) }

func (i *Instance) tellOOMIf(due bool) {
	if due {
		i.m.publish(i.lasting(), runtime.TaskOOMEventTopic, &apievents.TaskOOM{ContainerID: i.id})
	}
}

// tellOOMOnce is tellOOM, unless this daemon has said so before.
func (i *Instance) tellOOMOnce() { i.tellOOMIf(i.ledger.TakeOOM(false)) }

// tellOOMBeforeDelete is for a task that ended while there was no daemon, or so soon after that its clients may not
// have heard: its client may delete it, and the cgroup with it, long before the exit is told. CRI does so while it
// recovers what it knew.
func (i *Instance) tellOOMBeforeDelete() {
	e := i.ledger.Exit("")
	if i.reading == nil || e == nil || e.Status != ledger.ExitKilled || e.Told && e.Owed == 0 {
		return
	}
	i.ledger.NoteOOM()
	i.tellOOMOnce()
}

// execGrace is how long an exec that has stopped is waited for.
const execGrace = 2 * time.Second

// replay tells the exits that a living shim does not tell. It waits until the shim has given up on telling them and,
// after a start of the daemon, until subscribers can have come back; nothing is told once a client deletes the task.
func (i *Instance) replay() {
	// At the end of the daemon the next start goes on.
	_ = await.UntilDue(i.m.ctx, func() (await.Wake, time.Duration, bool) {
		news := i.ledger.News()
		for {
			_, changed, due, ok := i.due((*ledger.Ledger).ReplayDue)
			if !ok {
				return await.Wake{}, 0, true
			}
			if wait := max(time.Until(due), subscribersBack-time.Since(i.m.desk.Started())); wait > 0 {
				return await.Wake{changed, news}, wait, false
			}
			if !i.replayNow() {
				return await.Wake{}, 0, true
			}
		}
	})
}

// replayNow tells what is due; false when the manager was closed before.
func (i *Instance) replayNow() bool {
	i.askExecs(i.context())
	if !i.m.follower.CatchUp() {
		return false
	}
	i.ledger.NoteOOM()
	if end, ok := i.beginSpeaking(); ok {
		defer end()
		i.tellExits("replay")
	}
	return true
}

// replayFound has exits told after a restore, and finds out first what ended while there was no daemon.
func (i *Instance) replayFound() {
	if i.kind != life.Task {
		return
	}
	if i.ledger.StoppedUntimed() {
		// Where State does not say when it ended, Wait says how.
		i.m.spawn(func() { _, _ = i.wait(i.context(), "") })
	}
	i.askExecs(i.context())
	i.ledger.TellLater()
}

// askExecs finds out the exits of execs that were running when the last daemon stopped. State is asked, whose answer is
// bounded in time; an exit that it gives without a time may not be known to the shim yet, and is what Wait says.
func (i *Instance) askExecs(ctx context.Context) {
	for _, id := range i.ledger.PendingExecs() {
		x := i.ledger.ExecOf(id)
		s, err := i.sendState(ctx, id)
		switch {
		case err != nil || s.Status != tasktypes.Status_STOPPED:
			// deleted, or its exit is told when it comes
		case ledger.HasTime(s.ExitedAt):
			i.ledger.LearnExecExit(x, bundle.Exit{Status: s.ExitStatus, At: ledger.TimeOf(s.ExitedAt)})
		default:
			i.ledger.SeenStopped(id)
			wctx, cancel := context.WithTimeout(ctx, execGrace)
			_, _ = i.wait(wctx, id)
			cancel()
		}
	}
}

// follow keeps track of what shims tell, so that exits and deletions are told once, and why a task ended is known when
// its exit has to be told by the daemon.
func (m *ShimManager) follow() {
	ch, errs := m.config.Events.Subscribe(m.ctx,
		fmt.Sprintf("topic==%q", runtime.TaskExitEventTopic),
		fmt.Sprintf("topic==%q", runtime.TaskDeleteEventTopic),
		fmt.Sprintf("topic==%q", runtime.TaskOOMEventTopic))
	m.follower.Follow(ch, errs, m.heard)
}

// heard hands an event to the instance that it is about.
func (m *ShimManager) heard(env *events.Envelope) {
	if env == nil || env.Event == nil {
		return
	}
	v, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		log.G(m.ctx).WithError(err).WithField("topic", env.Topic).Warn("cannot read a task event")
		return
	}
	switch e := v.(type) {
	case *apievents.TaskExit:
		execID := e.ID
		if execID == e.ContainerID {
			execID = ""
		}
		for _, i := range m.reachable(env.Namespace, e.ContainerID) {
			i.onExitEvent(execID, bundle.Exit{Pid: e.Pid, Status: e.ExitStatus, At: ledger.TimeOf(e.ExitedAt)})
		}
	case *apievents.TaskDelete:
		if e.ID == "" {
			for _, i := range m.reachable(env.Namespace, e.ContainerID) {
				i.onDeleteEvent(e.Pid)
			}
		}
	case *apievents.TaskOOM:
		for _, i := range m.reachable(env.Namespace, e.ContainerID) {
			i.onOOMEvent(env.Timestamp)
		}
	}
}

// reachable are the tasks that an event about an id may mean: the present one, and those that have just left.
func (m *ShimManager) reachable(namespace, id string) []*Instance {
	k := key{namespace, id}
	m.mu.Lock()
	var is []*Instance
	if i := m.instances[k]; i != nil && i.kind == life.Task {
		is = append(is, i)
	}
	for _, i := range m.leaving[k] {
		if !slices.Contains(is, i) {
			is = append(is, i)
		}
	}
	m.mu.Unlock()
	for _, i := range is {
		i.read()
	}
	return is
}

// stayReachable lets events reach an instance after it has left the map, until the returned func is called.
func (m *ShimManager) stayReachable(i *Instance) (end func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := i.key()
	m.leaving[k] = append(m.leaving[k], i)
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.leaving[k] = slices.DeleteFunc(m.leaving[k], func(o *Instance) bool { return o == i })
		if len(m.leaving[k]) == 0 {
			delete(m.leaving, k)
		}
	}
}
