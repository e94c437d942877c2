// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	oomTopic    = runtime.TaskOOMEventTopic
	exitTopic   = runtime.TaskExitEventTopic
	deleteTopic = runtime.TaskDeleteEventTopic
	syncTopic   = "/test/sync"
)

// told is an event as a client of the daemon sees it.
type told struct {
	Topic, Container string
	// ID is the exec's or the container's, for an exit.
	ID     string
	Pid    uint32
	Status uint32
	At     time.Time
}

// endpoint is the daemon's side of events: the socket that shims send to, and a client that listens for all.
type endpoint struct {
	t    *testing.T
	path string
	srv  *ttrpc.Server

	mu    sync.Mutex
	up    bool // whether the daemon is
	heard []told
	more  chan struct{}
}

func newEndpoint(t *testing.T) *endpoint {
	t.Helper()
	dir, err := os.MkdirTemp("", "sy")
	require.NoError(t, err)
	e := &endpoint{t: t, path: filepath.Join(dir, "e.sock"), more: make(chan struct{})}
	e.srv, err = ttrpc.NewServer()
	require.NoError(t, err)
	eventsapi.RegisterTTRPCEventsService(e.srv, e)
	l, err := net.Listen("unix", e.path)
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = e.srv.Serve(context.Background(), l)
	}()
	t.Cleanup(func() {
		_ = e.srv.Close()
		<-served
		_ = os.RemoveAll(dir)
	})
	return e
}

// syncs makes the ids of settle.
var syncs atomic.Int64

// open lets events in and listens to them until close.
func (e *endpoint) open() (closeIt func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ch, errs := testExchange.Subscribe(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case env := <-ch:
				e.hear(env)
			case <-errs:
				return
			}
		}
	}()
	e.setUp(true)
	return func() {
		e.setUp(false)
		e.settle()
		cancel()
		<-done
	}
}

func (e *endpoint) setUp(up bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.up = up
}

// Forward is what shims call.
func (e *endpoint) Forward(ctx context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	e.mu.Lock()
	up := e.up
	e.mu.Unlock()
	if !up {
		return nil, errors.New("the daemon is down")
	}
	env := r.GetEnvelope()
	return &emptypb.Empty{}, testExchange.Forward(ctx, &events.Envelope{
		Timestamp: env.GetTimestamp().AsTime(), Namespace: env.GetNamespace(), Topic: env.GetTopic(),
		Event: env.GetEvent(),
	})
}

func (e *endpoint) hear(env *events.Envelope) {
	v, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		return
	}
	h := told{Topic: env.Topic}
	switch v := v.(type) {
	case *apievents.TaskCreate:
		h.Container, h.Pid = v.ContainerID, v.Pid
	case *apievents.TaskStart:
		h.Container, h.Pid = v.ContainerID, v.Pid
	case *apievents.TaskExit:
		h.Container, h.ID, h.Pid, h.Status, h.At = v.ContainerID, v.ID, v.Pid, v.ExitStatus, v.ExitedAt.AsTime()
	case *apievents.TaskDelete:
		h.Container, h.ID, h.Pid, h.Status, h.At = v.ContainerID, v.ID, v.Pid, v.ExitStatus, v.ExitedAt.AsTime()
	case *apievents.TaskOOM:
		h.Container = v.ContainerID
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, h)
	close(e.more)
	e.more = make(chan struct{})
}

// settle returns when all that was published so far has been heard.
func (e *endpoint) settle() {
	e.t.Helper()
	id := fmt.Sprintf("sync-%d", syncs.Add(1))
	require.NoError(e.t, testExchange.Publish(namespaces.WithNamespace(context.Background(), testNamespace), syncTopic,
		&apievents.TaskOOM{ContainerID: id}))
	e.await(id, syncTopic, 1)
}

// of returns what was heard of a container, of some topics or of all.
func (e *endpoint) of(id string, topics ...string) []told {
	found, _ := e.find(id, topics)
	return found
}

func (e *endpoint) find(id string, topics []string) ([]told, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []told
	for _, h := range e.heard {
		match := len(topics) == 0
		for _, topic := range topics {
			match = match || topic == h.Topic
		}
		if h.Container == id && match {
			found = append(found, h)
		}
	}
	return found, e.more
}

// await waits for n events of a topic about a container.
func (e *endpoint) await(id, topic string, n int) []told {
	e.t.Helper()
	patience := time.After(time.Minute)
	for {
		found, more := e.find(id, []string{topic})
		if len(found) >= n {
			return found
		}
		select {
		case <-more:
		case <-patience:
			require.FailNowf(e.t, "waiting in vain", "for %d × %s of %s; heard: %+v", n, topic, id, e.of(id))
		}
	}
}
