// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Event is what a shim has published.
type Event struct {
	Namespace, Topic string
	ID               string // of the container
	Message          proto.Message
}

// Events stands for containerd's TTRPC endpoint, and remembers the events that shims send.
type Events struct {
	t    testing.TB
	path string

	mu     sync.Mutex // guards what follows
	events []Event
	more   chan struct{} // closed when there is another
	server *ttrpc.Server
	served chan struct{} // closed when server has ended
}

// NewEvents starts to listen. It ends with the test.
func NewEvents(t testing.TB) *Events {
	t.Helper()
	dir, err := os.MkdirTemp("", "sy")
	if err != nil {
		t.Fatal(err)
	}
	e := &Events{t: t, path: filepath.Join(dir, "e.sock"), more: make(chan struct{})}
	t.Cleanup(func() {
		e.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	e.Open()
	return e
}

// Address is for TTRPC_ADDRESS.
func (e *Events) Address() string { return e.path }

// Open listens again after Close, as a daemon does that has been restarted.
func (e *Events) Open() {
	e.t.Helper()
	srv, err := ttrpc.NewServer()
	if err != nil {
		e.t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(srv, e)
	_ = os.Remove(e.path)
	l, err := net.Listen("unix", e.path)
	if err != nil {
		e.t.Fatal(err)
	}
	served := make(chan struct{})
	e.mu.Lock()
	e.server, e.served = srv, served
	e.mu.Unlock()
	go func() {
		defer close(served)
		_ = srv.Serve(context.Background(), l)
	}()
}

// Close stops listening and closes the connections; shims keep their events and try again. It does nothing when closed.
func (e *Events) Close() {
	e.mu.Lock()
	srv, served := e.server, e.served
	e.server = nil
	e.mu.Unlock()
	if srv != nil {
		_ = srv.Close()
		<-served
	}
}

// Forward is the service's method.
func (e *Events) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	ev, err := decodeEvent(r.GetEnvelope())
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, ev)
	close(e.more)
	e.more = make(chan struct{})
	return &emptypb.Empty{}, nil
}

func decodeEvent(env *types.Envelope) (Event, error) {
	ev := Event{Namespace: env.GetNamespace(), Topic: env.GetTopic()}
	m, err := env.GetEvent().UnmarshalNew()
	if err != nil {
		return ev, errors.Wrap(err, "decoding an event")
	}
	ev.Message = m
	if fd := m.ProtoReflect().Descriptor().Fields().ByName("container_id"); fd != nil &&
		fd.Kind() == protoreflect.StringKind {
		ev.ID = m.ProtoReflect().Get(fd).String()
	}
	return ev, nil
}

// All returns the events so far, of one container or ("") of all.
func (e *Events) All(id string) []Event {
	found, _ := e.find("", id)
	return found
}

// Topics returns the topics of the events so far of a container, in order.
func (e *Events) Topics(id string) []string {
	var topics []string
	for _, ev := range e.All(id) {
		topics = append(topics, ev.Topic)
	}
	return topics
}

func (e *Events) find(topic, id string) ([]Event, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []Event
	for _, ev := range e.events {
		if (topic == "" || ev.Topic == topic) && (id == "" || ev.ID == id) {
			found = append(found, ev)
		}
	}
	return found, e.more
}

// Await waits for n events of a topic about a container, and returns them.
func (e *Events) Await(topic, id string, n int) []Event {
	e.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		found, more := e.find(topic, id)
		if len(found) >= n {
			return found
		}
		select {
		case <-more:
		case <-deadline.C:
			e.t.Fatalf("waiting in vain for %d × %s of %s; there are %v", n, topic, id, e.Topics(id))
		}
	}
}
