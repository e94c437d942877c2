// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/metrics"
)

// subscribersBack is when, after a start of the daemon, clients that follow events can have come back.
const subscribersBack = 3 * time.Second

// maxTries bounds how often an exit is told where crashes leave it unknown whether it was.
const maxTries = 3

// tell says for a dead shim what it can no longer say: exits of execs, the exit of init, the deletion, each only if nobody said it.
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

// tellExits tells what is known and untold of exits, those of execs first. What is told is in the bundle before it is told, and that it
// was told is marked there before the next thing is said: a crash in between repeats the same words.
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
