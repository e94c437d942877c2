// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"slices"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// nativeError gives an error of the raw API its class.
func nativeError(err error) error { return errgrpc.ToNative(err) }

// eventLog collects the task events of a daemon.
type eventLog struct {
	n       *node
	mu      sync.Mutex
	events  []taskEvent
	repeats []taskEvent
}

// A young daemon tells an exit again, in the same words, until its task is deleted: not before repeatPause, and so many
// times at most.
const (
	repeatPause = 4 * time.Second
	maxRepeats  = 3
)

// taskEvent is what an event says of a task.
type taskEvent struct {
	topic, id string
	at        time.Time             // when it was sent
	exit      *apievents.TaskExit   // of an exit
	deleted   *apievents.TaskDelete // of a delete
}

// watch collects from now on, until the daemon or the test ends. It has a
// connection of its own, so that it can end with it.
func (n *node) watch() *eventLog {
	n.t.Helper()
	l := &eventLog{n: n}
	c := n.Dial()
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(context.Background(), testNS))
	ch, errs := c.EventService().Subscribe(ctx, `topic~="^/tasks/"`)
	done := make(chan struct{})
	n.t.Cleanup(func() {
		cancel()
		<-done
		c.Close()
	})
	go func() {
		defer close(done)
		for {
			select {
			case e := <-ch:
				v, err := typeurl.UnmarshalAny(e.Event)
				if err != nil {
					n.t.Errorf("an event that cannot be read: %v", err)
					return
				}
				l.add(e.Topic, e.Timestamp, v)
			case <-errs:
				return
			}
		}
	}()
	// Subscribe answers before the daemon has subscribed; what is published
	// over the same connection after it tells when it has.
	n.untilSubscribed(ctx, l)
	return l
}

// untilSubscribed publishes a marker until it comes back.
func (n *node) untilSubscribed(ctx context.Context, l *eventLog) {
	n.t.Helper()
	require.Eventually(n.t, func() bool {
		err := n.Client().EventService().Publish(ctx, "/tasks/marker", &apievents.TaskOOM{ContainerID: "marker"})
		return err == nil && l.count("/tasks/marker", "marker") > 0
	}, patience, tick)
}

func (l *eventLog) add(topic string, at time.Time, v any) {
	e := taskEvent{topic: topic, at: at}
	if named, ok := v.(interface{ GetContainerID() string }); ok {
		e.id = named.GetContainerID()
	}
	switch v := v.(type) {
	case *apievents.TaskExit:
		e.exit = v
	case *apievents.TaskDelete:
		e.deleted = v
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.repeated(e) {
		l.repeats = append(l.repeats, e)
		return
	}
	l.events = append(l.events, e)
}

// repeated tells whether an exit is one of the repeats that a young daemon owes.
func (l *eventLog) repeated(e taskEvent) bool {
	same := func(o taskEvent) bool { return e.exit != nil && o.exit != nil && proto.Equal(o.exit, e.exit) }
	told, before := 0, time.Time{}
	for _, o := range slices.Concat(l.events, l.repeats) {
		if same(o) {
			told++
			before = o.at
		}
	}
	return told > 0 && told <= maxRepeats && e.at.Sub(before) >= repeatPause
}

// of lists the events of one task.
func (l *eventLog) of(id string) []taskEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []taskEvent
	for _, e := range l.events {
		if e.id == id {
			list = append(list, e)
		}
	}
	return list
}

func (l *eventLog) topics(id string) []string {
	var list []string
	for _, e := range l.of(id) {
		list = append(list, e.topic)
	}
	return list
}

func (l *eventLog) count(topic, id string) int {
	n := 0
	for _, t := range l.topics(id) {
		if t == topic {
			n++
		}
	}
	return n
}

// waitFor waits until the task has had an event of the topic.
func (l *eventLog) waitFor(topic, id string) {
	l.n.t.Helper()
	l.waitForCount(1, topic, id)
}

// waitForCount waits until the task has had so many events of the topic, and
// fails where it has more.
func (l *eventLog) waitForCount(count int, topic, id string) {
	l.n.t.Helper()
	require.Eventually(l.n.t, func() bool { return l.count(topic, id) >= count }, patience, tick,
		"waiting for %s of %s", topic, id)
	require.Equal(l.n.t, count, l.count(topic, id), "%s of %s", topic, id)
}

// withCancelAfter cancels after d, as a caller who goes away does: not by a
// deadline, which the daemon would know of.
func withCancelAfter(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(d, cancel)
	return ctx, func() {
		timer.Stop()
		cancel()
	}
}
