// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/pkg/errors"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// TestProcessEvents goes through every event in every state of a process.
func TestProcessEvents(t *testing.T) {
	all := []State{Connecting, Connected, Unresponsive, Ended}
	for _, c := range []struct {
		event string
		fire  func(*testing.T, *Process, *Link)
		leads map[State]State
		wakes []State // those who watch it, without another state
	}{
		{"connected", func(t *testing.T, p *Process, l *Link) {
			_, before, _ := p.Watch()
			err := p.OnConnected(l.Conn)
			require.Equal(t, before == Ended, err != nil, "%v", err)
			// A silent shim is silent until it has answered, whatever becomes of its connection.
		}, map[State]State{Connecting: Connected}, []State{Unresponsive}},
		{"lost", func(_ *testing.T, p *Process, _ *Link) { p.OnLost() },
			map[State]State{Connected: Connecting}, []State{Unresponsive}},
		{"silent", func(_ *testing.T, p *Process, l *Link) { p.OnSilent(l) },
			map[State]State{Connected: Unresponsive}, nil},
		{"silent on another connection", func(_ *testing.T, p *Process, _ *Link) { p.OnSilent(&Link{}) }, nil, nil},
		{"answered", func(_ *testing.T, p *Process, l *Link) { p.answered(l) },
			map[State]State{Unresponsive: Connected}, nil},
		{"answered on another connection", func(_ *testing.T, p *Process, _ *Link) { p.answered(&Link{}) }, nil, nil},
		{"ended", func(_ *testing.T, p *Process, _ *Link) { p.End() },
			map[State]State{Connecting: Ended, Connected: Ended, Unresponsive: Ended}, nil},
		{"died", func(_ *testing.T, p *Process, _ *Link) { p.die("test") },
			map[State]State{Connecting: Ended, Connected: Ended, Unresponsive: Ended}, nil},
	} {
		for _, st := range all {
			t.Run(fmt.Sprintf("%s/%s", c.event, st), func(t *testing.T) {
				r, _ := idle(t)
				g := newGuest("c1", false)
				p, _, err := r.Attach(g, nowhere, Origin{Launched: true})
				require.NoError(t, err)
				l := mute(t)
				p.put(st, time.Now())
				if st == Connected || st == Unresponsive {
					p.linkTo(l)
				}
				want, ok := c.leads[st]
				if !ok {
					want = st
				}
				_, _, changed := p.Watch()
				c.fire(t, p, l)
				_, now, _ := p.Watch()
				require.Equal(t, want, now)
				require.Equal(t, want != st || slices.Contains(c.wakes, st), await.IsClosed(changed))
				if now == Ended {
					require.Error(t, p.Join(newGuest("c9", true), Origin{}), "nobody joins what has ended")
				}
				died := 0
				if c.event == "died" {
					died = 1
				}
				require.Equal(t, died, g.deaths)
			})
		}
	}
}

// TestTracesOfAProcess are those of the member that started it, after that one has left too, and of the ones that are
// behind it now: a pod's shim, or a warm one, that serves thousands one after the other keeps nothing of each.
func TestTracesOfAProcess(t *testing.T) {
	r, _ := idle(t)
	first, pause := newGuest("first", false), newGuest("pause", true)
	p, _, err := r.Attach(first, nowhere, Origin{Launched: true})
	require.NoError(t, err)
	require.NoError(t, p.Join(pause, Origin{}))
	for n := range 1000 {
		g := newGuest(fmt.Sprint("c", n), true)
		require.NoError(t, p.Join(g, Origin{}))
		require.Same(t, p, g.in)
		if n%2 == 0 {
			require.False(t, p.Leave(g))
		} else {
			require.Equal(t, 2, p.Remove(g))
		}
	}
	require.False(t, p.Leave(first))
	tokens, dirs := p.Traces()
	require.ElementsMatch(t, []string{"token-of-first", "token-of-pause"}, tokens)
	require.ElementsMatch(t, []string{"/nowhere/first", "/nowhere/pause"}, dirs)

	require.True(t, p.Leave(pause))
	p.Stay(pause)
	tokens, dirs = p.Traces()
	require.Contains(t, tokens, "token-of-pause", "it could not be shut down, and its last member is behind it again")
	require.Contains(t, dirs, "/nowhere/pause")
}

// TestClose: which members let a process be closed to others, and what opens it again.
func TestClose(t *testing.T) {
	undone := func(id string) *guest {
		g := newGuest(id, true)
		g.says.Abandoned = true
		return g
	}
	one, other, cut, cut2 := newGuest("c1", true), newGuest("c2", true), undone("c3"), undone("c4")
	for _, c := range []struct {
		name                    string
		in                      []*guest
		empty, alone, abandoned bool
	}{
		{"nobody", nil, true, false, true},
		{"one", []*guest{one}, false, true, false},
		{"another", []*guest{other}, false, false, false},
		{"two", []*guest{one, other}, false, false, false},
		{"creates that are being undone", []*guest{cut, cut2}, false, false, true},
		{"one and a create that is being undone", []*guest{one, cut}, false, false, false},
	} {
		for _, x := range []struct {
			name  string
			close func(*Process) bool
			want  bool
		}{
			{"empty", (*Process).CloseIfEmpty, c.empty},
			{"alone", func(p *Process) bool { return p.closeIfAlone(one) }, c.alone},
			{"abandoned", func(p *Process) bool { _, ok := p.CloseIfAbandoned(); return ok }, c.abandoned},
		} {
			t.Run(c.name+"/"+x.name, func(t *testing.T) {
				r, _ := idle(t)
				p := newProcess(r, nowhere)
				for _, g := range c.in {
					require.NoError(t, p.Join(g, Origin{}))
				}
				require.Equal(t, x.want, x.close(p))
				err := p.Join(newGuest("late", true), Origin{})
				if !x.want {
					require.NoError(t, err)
					return
				}
				require.ErrorIs(t, err, ErrClosing)
				p.Reopen()
				require.NoError(t, p.Join(newGuest("late", true), Origin{}))
				p.End()
			})
		}
	}
}

// TestIsCurrent: whose word on a task need not be asked for.
func TestIsCurrent(t *testing.T) {
	for _, c := range []struct {
		name    string
		version int
		st      State
		probing bool
		want    bool
	}{
		{"connected", 3, Connected, false, true},
		{"an old shim", 2, Connected, false, false},
		{"being probed", 3, Connected, true, false},
		{"silent", 3, Unresponsive, true, false},
		{"without a connection", 3, Connecting, false, false},
		{"ended", 3, Ended, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := idle(t)
			p := newProcess(r, nowhere)
			p.put(c.st, time.Now())
			p.speak(c.version, c.probing)
			require.Equal(t, c.want, p.IsCurrent())
		})
	}
}

// A shim that falls silent, answers again, loses its connection and dies is one line each, which names it, whom it
// serves, and for how long it was silent, or not connected. A connection that is back does not count before it answers
// if it was silent, nor does one that is lost by death.
func TestLinesForOperators(t *testing.T) {
	r, _ := idle(t)
	logger, hook := logtest.NewNullLogger()
	r.ctx = log.WithLogger(r.ctx, logrus.NewEntry(logger))
	var p *Process
	for n := range namedInLog + 2 {
		g := newGuest(fmt.Sprintf("task-%02d", n), n > 0)
		g.says.Binary.Runtime = "io.containerd.runc.v2"
		var err error
		p, _, err = r.Attach(g, nowhere, Origin{Launched: true, Group: "task-00"})
		require.NoError(t, err)
	}
	l := mute(t)
	p.put(Connected, time.Now())
	p.linkTo(l)
	p.mu.Lock()
	p.pid = shimclient.ProcessID{Pid: 4711}
	p.mu.Unlock()
	p.OnSilent(l)
	p.reportAgain(l.Conn, time.Now())
	p.answered(l)
	p.reportAgain(l.Conn, time.Now())
	p.die("it is a test")
	p.reportAgain(nil, time.Now())
	var said []string
	for _, e := range hook.AllEntries() {
		said = append(said, e.Message)
		require.Equal(t, nowhere, e.Data["address"])
		require.Equal(t, "io.containerd.runc.v2", e.Data["runtime"])
		require.Equal(t, 4711, e.Data["shim_pid"])
		served, ok := e.Data["serves"].([]string)
		require.True(t, ok)
		require.Equal(t, "ns/task-00", served[0])
		require.Equal(t, "and 2 more", served[namedInLog])
	}
	require.Equal(t, []string{
		"shim does not answer; its containers are left alone and it is tried until it answers", "shim answers again",
		"the connection to the shim was lost, and is back", "shim is dead: it is a test",
	}, said)
	require.Contains(t, hook.AllEntries()[1].Data, "after")
	require.Contains(t, hook.AllEntries()[2].Data, "after")
}

// owner keeps a process that nobody is behind.
type owner struct{}

func (owner) StartID() string { return "_idle" }
func (owner) Runtime() string { return "io.containerd.runc.v2" }
func (owner) Take(*Process)   {}

// TestLineOfAnIdleShim: it serves nobody, and is of a runtime all the same.
func TestLineOfAnIdleShim(t *testing.T) {
	r, _ := idle(t)
	logger, hook := logtest.NewNullLogger()
	r.ctx = log.WithLogger(r.ctx, logrus.NewEntry(logger))
	_, err := r.AttachKept(owner{}, nowhere, KeptFacts{}, true)
	require.NoError(t, err)
	r.At(nowhere).die("it is a test")
	require.Equal(t, "io.containerd.runc.v2", hook.LastEntry().Data["runtime"])
	require.NotContains(t, hook.LastEntry().Data, "serves")
}

// TestCodes are those of gRPC, by which calls are counted.
func TestCodes(t *testing.T) {
	require.Equal(t, "OK", codeOf(nil))
	require.Equal(t, "NotFound", codeOf(ErrDead))
	require.Equal(t, "DeadlineExceeded", codeOf(shimclient.ErrNoAnswer))
	require.Equal(t, "Unknown", codeOf(errors.New("runc")))
}

// TestWaitsAreNotCounted: a Wait lasts as long as its container.
func TestWaitsAreNotCounted(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, metrics.Register(r, "v0", "v0"))
	count := func() int {
		n, err := testutil.GatherAndCount(r, "shimyard_rpcs_total")
		require.NoError(t, err)
		return n
	}
	was := count()
	observe("Wait", nil, time.Hour)
	observe("WaitSandbox", nil, time.Hour)
	require.Equal(t, was, count())
	observe("TestOfReport", nil, time.Second)
	require.Equal(t, was+1, count())
}
