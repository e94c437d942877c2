// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"net"
	"strings"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// eventRetry is for how long an event is offered to a daemon that is away: about as long as real shims do.
	eventRetry = 15 * time.Second
	// eventFlush is for how long a daemon that is to end waits for its last events to be taken.
	eventFlush = 5 * time.Second
)

// publisher forwards events to containerd, one after the other in the order of publish.
type publisher struct {
	d       *daemon
	address string
	done    chan struct{} // closed when the queue is closed and empty

	mu     sync.Mutex // guards what follows
	queue  chan *types.Envelope
	closed bool

	client *ttrpc.Client // belongs to the forwarding goroutine
}

func newPublisher(d *daemon, address string) *publisher {
	p := &publisher{
		d: d, address: strings.TrimPrefix(address, "unix://"), queue: make(chan *types.Envelope, 4096),
		done: make(chan struct{}),
	}
	go p.forward()
	return p
}

func (p *publisher) publish(topic string, event proto.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.queue <- &types.Envelope{Timestamp: timestamppb.Now(), Namespace: p.d.ns, Topic: topic, Event: typed(event)}
}

func (p *publisher) close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.queue)
	}
	p.mu.Unlock()
	select {
	case <-p.done:
	case <-time.After(eventFlush):
	}
}

func (p *publisher) forward() {
	defer close(p.done)
	for e := range p.queue {
		times := 1
		if r := p.rule(e); r != nil {
			time.Sleep(r.Delay)
			if r.Drop {
				continue
			}
			if r.Duplicate {
				times = 2
			}
		}
		for range times {
			p.deliver(e)
		}
	}
}

func (p *publisher) rule(e *types.Envelope) *EventRule {
	id := eventID(e)
	s := p.d.load()
	for i := range s.Events {
		if r := &s.Events[i]; (r.Topic == "*" || r.Topic == e.Topic) && (r.ID == "" || r.ID == id) {
			return r
		}
	}
	return nil
}

// eventID is the container that an event is about.
func eventID(e *types.Envelope) string {
	m, err := e.GetEvent().UnmarshalNew()
	if err != nil {
		return ""
	}
	return field(m, "container_id")
}

func (p *publisher) deliver(e *types.Envelope) {
	if p.address == "" {
		return
	}
	for deadline := time.Now().Add(eventRetry); ; time.Sleep(100 * time.Millisecond) {
		err := p.send(e)
		if err == nil {
			appendTrace(p.d.home, Entry{Kind: KindEvent, Action: e.Topic, ID: eventID(e)})
			return
		}
		if time.Now().After(deadline) {
			appendTrace(p.d.home, Entry{Kind: KindEvent, Action: e.Topic, ID: eventID(e), Error: err.Error()})
			return
		}
	}
}

func (p *publisher) send(e *types.Envelope) error {
	if p.client == nil {
		conn, err := net.DialTimeout("unix", p.address, 5*time.Second)
		if err != nil {
			return errors.Wrap(err, "dialling the daemon")
		}
		p.client = ttrpc.NewClient(conn)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // sent again it would be told twice
	defer cancel()
	_, err := eventsapi.NewTTRPCEventsClient(p.client).Forward(ctx, &eventsapi.ForwardRequest{Envelope: e})
	if err != nil {
		p.client.Close()
		p.client = nil
	}
	return errors.Wrap(err, "forwarding an event")
}
