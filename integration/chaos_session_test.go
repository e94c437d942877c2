// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
)

// session is one run of the daemon, as its clients see it.
type session struct {
	number int
	calls  *containerd.Client // of the workers
	waits  *containerd.Client // of the Waits that are pending
	// attached is since when the events are followed, ended until when; zero: they still are.
	attached, ended time.Time
	// stopping is set before the daemon is told to end.
	stopping atomic.Bool

	events  *containerd.Client
	done    chan struct{} // closed when no event comes any more
	pending sync.WaitGroup
	marker  chan struct{}
	cancel  context.CancelFunc
}

// open makes the clients of a daemon that has come up.
func (c *chaos) open() {
	c.opened++
	s := &session{number: c.opened}
	s.calls, s.waits = c.Dial(), c.Dial()
	c.subscribe(s)
	c.mu.Lock()
	c.sess = s
	c.sessions = append(c.sessions, s)
	close(c.up)
	c.mu.Unlock()
	c.note(nil, "daemon is up, session %d", s.number)
}

// subscribe follows the events, and returns when the daemon has begun to send them.
func (c *chaos) subscribe(s *session) {
	s.events, s.done, s.marker = c.Dial(), make(chan struct{}), make(chan struct{})
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(namespaces.WithNamespace(context.Background(), testNS))
	ch, errs := s.events.EventService().Subscribe(ctx, `topic~="^/tasks/"`)
	go func(done, marker chan struct{}) {
		defer close(done)
		for seen := false; ; {
			select {
			case e := <-ch:
				v, err := typeurl.UnmarshalAny(e.Event)
				if err != nil {
					c.fail(nil, "an event that cannot be read: %v", err)
				} else if _, is := v.(*events.TaskOOM); is && !seen {
					seen = true
					close(marker)
				} else {
					c.heard(s, v)
				}
			case <-errs:
				return
			}
		}
	}(s.done, s.marker)
	deadline := time.After(patience)
	for {
		_ = s.calls.EventService().Publish(ctx, "/tasks/marker", &events.TaskOOM{ContainerID: "marker"})
		select {
		case <-s.marker:
			s.attached = time.Now()
			return
		case <-deadline:
			c.fail(nil, "the daemon does not send events")
			c.t.FailNow()
		case <-time.After(tick):
		}
	}
}

// closeSession ends what the clients hold of a daemon that is being told to end, which is up to end.
func (c *chaos) closeSession() *session {
	c.mu.Lock()
	s := c.sess
	if s != nil {
		s.stopping.Store(true)
		s.ended = time.Now()
		c.sess = nil
		c.up = make(chan struct{})
	}
	c.mu.Unlock()
	return s
}

// endDaemon ends the daemon in one of both ways.
func (c *chaos) endDaemon(end func(*node)) {
	s := c.closeSession()
	if s == nil {
		return
	}
	end(c.node)
	done := make(chan struct{})
	go func() { s.pending.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		c.fail(nil, "a Wait does not end although the daemon has ended")
	}
	s.cancel()
	<-s.done
	s.calls.Close()
	s.waits.Close()
	s.events.Close()
}

// closeClients and openClients are for looking at what the daemon holds by itself.
func (c *chaos) closeClients() {
	s := c.sess
	s.ended = time.Now()
	s.cancel()
	<-s.done
	s.calls.Close()
	s.waits.Close()
	s.events.Close()
}

func (c *chaos) openClients() {
	c.mu.Lock()
	c.sess, c.up = nil, make(chan struct{})
	c.mu.Unlock()
	c.open()
}

// session is the present one; nil while the daemon is down.
func (c *chaos) session() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sess
}

// awaitSession waits until the daemon is up, or until stop.
func (c *chaos) awaitSession(stop <-chan struct{}) *session {
	for {
		c.mu.Lock()
		s, up := c.sess, c.up
		c.mu.Unlock()
		if s != nil {
			return s
		}
		select {
		case <-up:
		case <-stop:
			return nil
		}
	}
}

// followed tells whether the events have been followed without a gap from the first time to the second.
func (c *chaos) followed(from, to time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		if s.attached.Before(from) && (s.ended.IsZero() || s.ended.After(to)) {
			return true
		}
	}
	return false
}

// heard notes an event.
func (c *chaos) heard(s *session, event any) {
	switch e := event.(type) {
	case *events.TaskExit:
		x := told{from: "event", pid: e.Pid, code: e.ExitStatus, at: e.ExitedAt.AsTime(), session: s.number}
		if e.ID != e.ContainerID {
			x.exec = e.ID
		}
		c.tell(e.ContainerID, x)
	case *events.TaskCreate:
		c.noteOf(e.ContainerID, "event: created, pid %d", e.Pid)
	case *events.TaskStart:
		c.noteOf(e.ContainerID, "event: started, pid %d", e.Pid)
	case *events.TaskDelete:
		if e.ID == "" || e.ID == e.ContainerID {
			c.noteOf(e.ContainerID, "event: deleted, pid %d, code %d", e.Pid, e.ExitStatus)
		}
	}
}
