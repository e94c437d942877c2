// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"slices"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/ledger"
)

const (
	// quiet is how long no event comes to a follower that waits for one before nothing can be left in the exchange's
	// queues.
	quiet = 50 * time.Millisecond
	// quietLooks is the pause between two looks at whether the follower has caught up.
	quietLooks = 10 * time.Millisecond
)

// follower hears the exits, deletions and OOM kills that shims tell, one after the other, in the order in which they
// came to the exchange. It does no IO but for the first reading of an instance. The zero value follows nothing.
type follower struct {
	// mu guards all below.
	mu        sync.Mutex
	following bool
	idle      time.Time // since when it waits for an event; zero while it handles one
	upTo      time.Time // the newest event that was handled, by the time at which its shim sent it
}

// follow keeps track of what shims tell, so that exits and deletions are told once, and why a task ended is known when
// its exit has to be told by the daemon.
func (m *ShimManager) follow() {
	m.followFrom(m.config.Events.Subscribe(m.ctx,
		fmt.Sprintf("topic==%q", runtime.TaskExitEventTopic),
		fmt.Sprintf("topic==%q", runtime.TaskDeleteEventTopic),
		fmt.Sprintf("topic==%q", runtime.TaskOOMEventTopic)))
}

func (m *ShimManager) followFrom(ch <-chan *events.Envelope, errs <-chan error) {
	m.follower.waits(nil)
	m.spawn(func() {
		defer m.follower.end()
		for {
			select {
			case e := <-ch:
				m.follower.handles()
				m.heard(e)
				m.follower.waits(e)
			case <-errs:
				return
			}
		}
	})
}

func (f *follower) handles() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle = time.Time{}
}

// waits: the follower has handled an event, nil before the first, and waits for the next.
func (f *follower) waits(e *events.Envelope) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.following, f.idle = true, time.Now()
	if e != nil && e.Timestamp.After(f.upTo) && !e.Timestamp.After(f.idle) { // a time to come is of another clock
		f.upTo = e.Timestamp
	}
}

func (f *follower) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.following = false
}

// passed tells whether every event that had come to the exchange by a moment is handled: one that was sent later is, or
// none has come for a while. Without a follower there is nothing to wait for.
func (f *follower) passed(moment time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.following || f.upTo.After(moment) || !f.idle.IsZero() && time.Since(f.idle) >= quiet
}

// awaitFollower waits until every event that has come to the exchange by now is handled, however many those are; false
// when the manager was closed before.
func (m *ShimManager) awaitFollower() bool {
	for moment := time.Now(); !m.follower.passed(moment); {
		if !m.sleep(quietLooks) {
			return false
		}
	}
	return true
}

// awaitTold waits, for d, until what shims have sent must have come to the exchange, and until all of that is handled.
// After it nothing that a shim which is dead by now has told is unknown. False when the manager was closed before.
func (m *ShimManager) awaitTold(d time.Duration) bool {
	return m.awaitFollower() && m.sleep(d) && m.awaitFollower()
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
