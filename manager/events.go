// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// subscribersBack is when, after a start of the daemon, clients that follow events can have come back.
const subscribersBack = 3 * time.Second

// maxTries bounds how often an exit is told where crashes leave it unknown whether it was.
const maxTries = 3

// tell says for a dead shim what it can no longer say: exits of execs, the exit of init, the deletion, each only if
// it was not said.
func (i *Instance) tell() {
	i.tellExits("dead_shim")
	e := i.ledger.exit("")
	if e == nil || e.DeleteTold {
		return
	}
	i.m.publish(i.lasting(), runtime.TaskDeleteEventTopic, &apievents.TaskDelete{
		ContainerID: i.id, Pid: e.Pid, ExitStatus: e.Status, ExitedAt: timestamppb.New(e.At),
	})
	failpoint.Here("tell-delete")
	i.ledger.note("", func(e *bundle.Exit) { e.DeleteTold = true })
}

// tellExits tells what is known and untold of exits, those of execs first. What is told is in the bundle before it is
// told, and that it was told is marked there before the next thing is said: a crash in between repeats the same words.
func (i *Instance) tellExits(by string) {
	for _, execID := range i.ledger.untold() {
		e := i.ledger.exit(execID)
		if e.Tries >= maxTries {
			continue
		}
		i.ledger.note(execID, func(e *bundle.Exit) { e.Tries++ })
		failpoint.Here("tell-counted")
		if execID == "" {
			i.tellOOMOnce()
		}
		i.publishExit(execID, *e)
		metrics.ExitTold(by)
		failpoint.Here("tell-exit")
		i.ledger.note(execID, i.ledger.toldLocked)
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

// What acknowledges an exit is its task's Delete. Clients come back to a daemon that was started again in their own
// time: dockerd's subscription is later than the shim's retry of an event, and dockerd would say "running" for ever
// (https://github.com/moby/moby/issues/41303). So an exit that was told while the daemon was young, and whose task is
// still there, is told again, in the same words: clients that have heard it drop a repeat (moby compares pid and
// state).
const (
	// youth is for how long after the daemon's start what is told may not be heard by all.
	youth = 30 * time.Second
	// repeats is how often an exit is told again.
	repeats = 3
	// firstRepeatPause is between telling an exit and the first repeat of it; each further pause is twice the one
	// before. The last repeat comes 35 s after the first word.
	firstRepeatPause = 5 * time.Second
	// oomPause is between telling an OOM kill and the next repeat of it, until the exit is told or the daemon is not
	// young any more. Clients take the reason from what came before the exit, which the shim tells at a time of its
	// own: the shorter the pause, the fewer come back between the last repeat and the exit.
	oomPause = time.Second
)

// repeat tells exits, and OOM kills before them, again until none is owed or the task is deleted. While a Delete is
// under way it waits for what becomes of that.
func (i *Instance) repeat() {
	for {
		i.mu.Lock()
		st, changed := i.state, i.changed
		due, ok := i.ledger.repeatDueLocked(st)
		i.mu.Unlock()
		if !ok {
			return
		}
		wait := time.Until(due)
		switch {
		case st == deleting:
			wait = time.Hour // until that has succeeded or failed
		case wait <= 0:
			i.repeatNow()
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-i.m.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// repeatNow tells again what is due.
func (i *Instance) repeatNow() {
	oom, due := i.ledger.takeRepeats()
	failpoint.Here("repeat-counted")
	i.noteOOM()
	if !i.beginSpeaking() {
		return
	}
	defer i.ledger.endSpeaking()
	i.tellOOMIf(oom)
	for _, id := range due {
		if id == "" {
			i.tellOOM()
		}
		if e := i.ledger.exit(id); e != nil {
			i.publishExit(id, *e)
			metrics.ExitTold("repeat")
		}
	}
}

// beginSpeaking tells whether something may be told of the task; the caller calls the ledger's endSpeaking then.
func (i *Instance) beginSpeaking() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ledger.beginSpeakingLocked(i.state)
}

// exitKilled is the status of a process that SIGKILL ended: the kernel's for lack of memory, or a client's.
const exitKilled = 128 + 9

// A shim tells TaskOOM before the exit, and both are lost when the daemon is away for longer than the shim tries. The
// exit is found out from the shim afterwards; why it came about only the container's cgroup knows, which is there until
// the task is deleted. Clients take the reason from the event alone: CRI its OOMKilled, moby its State.OOMKilled.

// memoryOf is the memory cgroup of a process, and how many were killed in it so far. Nothing where the process has no
// cgroup other than its shim's: what is killed there may be another's.
func memoryOf(pid uint32, shim shimclient.ProcessID) (cgroup string, kills uint64) {
	cgroup, err := shimclient.MemoryCgroup(int(pid))
	if err != nil {
		return "", 0
	}
	if own, err := shimclient.MemoryCgroup(shim.Pid); err != nil || own == cgroup {
		return "", 0
	}
	if kills, err = shimclient.OOMKills(cgroup); err != nil {
		return "", 0
	}
	return cgroup, kills
}

// noteOOM looks whether init was ended for lack of memory. It must come before anything that removes the cgroup, and
// means something only when init has ended by itself.
func (i *Instance) noteOOM() {
	cgroup, before, ok := i.ledger.memory()
	if !ok {
		return
	}
	if kills, err := shimclient.OOMKills(cgroup); err != nil || kills <= before {
		return
	}
	i.ledger.recordOOM()
}

// tellOOM tells that init was ended for lack of memory, if it is known to have been.
func (i *Instance) tellOOM() { i.tellOOMIf(i.ledger.takeOOM(true)) }

func (i *Instance) tellOOMIf(due bool) {
	if due {
		i.m.publish(i.lasting(), runtime.TaskOOMEventTopic, &apievents.TaskOOM{ContainerID: i.id})
	}
}

// tellOOMOnce is tellOOM, unless this daemon has said so before.
func (i *Instance) tellOOMOnce() { i.tellOOMIf(i.ledger.takeOOM(false)) }

// tellOOMBeforeDelete is for a task that ended while there was no daemon, or so soon after that its clients may not
// have heard: its client may delete it, and the cgroup with it, long before the exit is told. CRI does so while it
// recovers what it knew.
func (i *Instance) tellOOMBeforeDelete() {
	e := i.ledger.exit("")
	if i.reading == nil || e == nil || e.Status != exitKilled || e.Told && e.Owed == 0 {
		return
	}
	i.noteOOM()
	i.tellOOMOnce()
}

// placeMemory records where it can be seen whether init is ended for lack of memory, once its pid is known to be its
// own.
func (i *Instance) placeMemory() {
	i.mu.Lock()
	p, pid := i.proc, i.ledger.unplacedLocked()
	i.mu.Unlock()
	if p == nil || pid == 0 {
		return
	}
	cgroup, kills := memoryOf(pid, p.Verified())
	i.ledger.placeMemory(pid, cgroup, kills)
}

// ownRetries is how long after an exit its shim may still tell it by itself: containerd's shims try again for 15 s
// after a crash of the daemon and for 45 s after a clean stop.
const ownRetries = time.Minute

// execGrace is how long an exec that has stopped is waited for.
const execGrace = 2 * time.Second

// replay tells the exits that a living shim does not tell. It waits until the shim has given up on telling them and,
// after a start of the daemon, until subscribers can have come back; nothing is told once a client deletes the task.
func (i *Instance) replay() {
	for {
		i.mu.Lock()
		changed := i.changed
		due, ok := i.ledger.replayDueLocked(i.state)
		i.mu.Unlock()
		if !ok {
			return
		}
		wait := max(time.Until(due), subscribersBack-time.Since(i.m.started))
		if wait <= 0 {
			i.askExecs(i.context())
			if !i.m.awaitFollower() {
				return
			}
			i.noteOOM()
			if i.beginSpeaking() {
				i.tellExits("replay")
				i.ledger.endSpeaking()
			}
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-changed:
		case <-t.C:
		case <-i.m.ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// replayFound is replayLater after a restore, which finds out first what ended while there was no daemon.
func (i *Instance) replayFound() {
	if i.kind != KindTask {
		return
	}
	if i.ledger.stoppedUntimed() {
		// Where State does not say when it ended, Wait says how.
		i.m.spawn(func() { _, _ = i.wait(i.context(), "") })
	}
	i.askExecs(i.context())
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ledger.replayLaterLocked()
	i.ledger.repeatLaterLocked()
}

// askExecs finds out the exits of execs that were running when the last daemon stopped. State is asked, whose answer is
// bounded in time; an exit that it gives without a time may not be known to the shim yet, and is what Wait says.
func (i *Instance) askExecs(ctx context.Context) {
	for _, id := range i.ledger.pendingExecs() {
		x := i.ledger.execOf(id)
		s, err := i.sendState(ctx, id)
		switch {
		case err != nil || s.Status != tasktypes.Status_STOPPED:
			// deleted, or its exit is told when it comes
		case hasTime(s.ExitedAt):
			i.ledger.learnExecExit(id, x, bundle.Exit{Status: s.ExitStatus, At: timeOf(s.ExitedAt)})
		default:
			i.ledger.firstSeenStopped(id)
			wctx, cancel := context.WithTimeout(ctx, execGrace)
			_, _ = i.wait(wctx, id)
			cancel()
		}
	}
}
