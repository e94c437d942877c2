// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// nowhere is an endpoint that nobody dials: what is tested here is not run.
var nowhere = shimclient.Endpoint{Protocol: "ttrpc", Address: "unix:///nowhere.sock", Version: 3}

// idle makes a registry whose processes do not connect by themselves. stop is what the end of the daemon does.
func idle(t testing.TB) (r *Registry, stop context.CancelFunc) {
	shimtest.CheckLeaks(t)
	return idleIn(t)
}

// idleIn is idle for a synctest bubble, which sees by itself to what goes on in it.
func idleIn(t testing.TB) (r *Registry, stop context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		for _, p := range r.All() {
			p.End()
		}
		cancel()
		wg.Wait()
	})
	return NewRegistry(Config{
		Context: ctx,
		Spawn: func(f func()) <-chan struct{} {
			done := make(chan struct{})
			wg.Go(func() { defer close(done); f() })
			return done
		},
		Begin: func(func()) {}, Urge: func() {},
		Deadlines:  func(shimclient.Binary) shimclient.Deadlines { return shimclient.DefaultDeadlines() },
		OnDistrust: func(*Process) {}, OnEnd: func(*Process) {},
		OnDied: func(m Member) { m.(*guest).deaths++ },
	}), cancel
}

// guest is a member.
type guest struct {
	says   Facts
	in     *Process
	deaths int
	gone   bool
	its    []int // the pids that the shim has run for it
}

func newGuest(id string, joined bool) *guest {
	return &guest{says: Facts{Namespace: "ns", ID: id, Token: "token-of-" + id, Dir: "/nowhere/" + id, Joined: joined}}
}

func (g *guest) Enter(p *Process) Facts { g.in = p; return g.says }
func (g *guest) Facts() Facts           { return g.says }
func (g *guest) Gone() bool             { return g.gone }
func (g *guest) Runs(id shimclient.ProcessID) bool {
	for _, pid := range g.its {
		if pid == id.Pid {
			return true
		}
	}
	return false
}

// mute is a connection to a shim that never answers.
func mute(t testing.TB) *Link {
	here, there := net.Pipe()
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(io.Discard, there)
	}()
	conn := shimclient.NewConn(here, nowhere, shimclient.DefaultDeadlines())
	t.Cleanup(func() {
		_ = conn.Close()
		_ = there.Close()
		<-read
	})
	task, err := conn.Task(3)
	require.NoError(t, err)
	return &Link{Conn: conn, Task: task}
}

// What follows puts a process into a state by force.

func (p *Process) put(st State, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state, p.since = st, since
}

func (p *Process) linkTo(l *Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.link = l
}

func (p *Process) unverify() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = shimclient.ProcessID{}
}

func (p *Process) speak(version int, probing bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.version, p.probing = version, probing
}
