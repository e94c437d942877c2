// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"
	"slices"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/metrics"
)

const (
	// inFlight is how long the events of a dead shim may still be on their way: they come on a connection of their own.
	inFlight = 200 * time.Millisecond
	// subscribersBack is when, after a start of the daemon, clients that follow events can have come back.
	subscribersBack = 3 * time.Second
)

// follow keeps track of the exits and deletions that shims tell, so that nothing is told twice.
func (m *ShimManager) follow() {
	ch, errs := m.config.Events.Subscribe(m.ctx,
		fmt.Sprintf("topic==%q", runtime.TaskExitEventTopic),
		fmt.Sprintf("topic==%q", runtime.TaskDeleteEventTopic))
	m.spawn(func() {
		for {
			select {
			case e := <-ch:
				m.heard(e)
			case <-errs:
				return
			}
		}
	})
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
			i.onExitEvent(execID, bundle.Exit{Pid: e.Pid, Status: e.ExitStatus, At: timeOf(e.ExitedAt)})
		}
	case *apievents.TaskDelete:
		if e.ID == "" {
			for _, i := range m.reachable(env.Namespace, e.ContainerID) {
				i.onDeleteEvent(e.Pid)
			}
		}
	}
}

// reachable are the tasks that an event about an id may mean: the present one, and those that have just left.
func (m *ShimManager) reachable(namespace, id string) []*Instance {
	k := key{namespace, id}
	m.mu.Lock()
	var is []*Instance
	if i := m.instances[k]; i != nil && i.kind == KindTask {
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

// maxTries bounds how often an exit is told where crashes leave it unknown whether it was.
const maxTries = 3

// tell says for a dead shim what it can no longer say: exits of execs, the exit of init, the deletion, each only if nobody said it.
func (i *Instance) tell() {
	i.tellExits("dead_shim")
	e := i.exit("")
	if e == nil || e.DeleteTold {
		return
	}
	i.m.publish(i.lasting(), runtime.TaskDeleteEventTopic, &apievents.TaskDelete{
		ContainerID: i.id, Pid: e.Pid, ExitStatus: e.Status, ExitedAt: timestamppb.New(e.At),
	})
	failpoint("tell-delete")
	i.note("", func(e *bundle.Exit) { e.DeleteTold = true })
}

// tellExits tells what is known and untold of exits, those of execs first. What is told is in the bundle before it is told, and that it
// was told is marked there before the next thing is said: a crash in between repeats the same words.
func (i *Instance) tellExits(by string) {
	for _, execID := range i.untold() {
		e := i.exit(execID)
		if e.Tries >= maxTries {
			continue
		}
		i.note(execID, func(e *bundle.Exit) { e.Tries++ })
		failpoint("tell-counted")
		i.publishExit(execID, *e)
		metrics.ExitTold(by)
		failpoint("tell-exit")
		i.note(execID, func(e *bundle.Exit) { e.Told = true })
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
