// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestProcessEvents goes through every event in every state of a process.
func TestProcessEvents(t *testing.T) {
	all := []processState{connecting, connected, unresponsive, ended}
	for _, c := range []struct {
		event string
		fire  func(*testing.T, *Process, *link)
		leads map[processState]processState
		wakes []processState // those who watch it, without another state
	}{
		{"connected", func(t *testing.T, p *Process, l *link) {
			before := p.state
			err := p.onConnected(l.conn)
			require.Equal(t, before == ended, err != nil, "%v", err)
			// A silent shim is silent until it has answered, whatever becomes of its connection.
		}, map[processState]processState{connecting: connected}, []processState{unresponsive}},
		{"lost", func(_ *testing.T, p *Process, _ *link) { p.lost() },
			map[processState]processState{connected: connecting}, []processState{unresponsive}},
		{"silent", func(_ *testing.T, p *Process, l *link) { p.silent(l) },
			map[processState]processState{connected: unresponsive}, nil},
		{"silent on another connection", func(_ *testing.T, p *Process, _ *link) { p.silent(&link{}) }, nil, nil},
		{"answered", func(_ *testing.T, p *Process, l *link) { p.answered(l) },
			map[processState]processState{unresponsive: connected}, nil},
		{"answered on another connection", func(_ *testing.T, p *Process, _ *link) { p.answered(&link{}) }, nil, nil},
		{"ended", func(_ *testing.T, p *Process, _ *link) { p.end() },
			map[processState]processState{connecting: ended, connected: ended, unresponsive: ended}, nil},
		{"died", func(_ *testing.T, p *Process, _ *link) { p.die("test") },
			map[processState]processState{connecting: ended, connected: ended, unresponsive: ended}, nil},
	} {
		for _, st := range all {
			t.Run(fmt.Sprintf("%s/%s", c.event, st), func(t *testing.T) {
				r, _ := idle(t)
				g := newGuest("c1", false)
				p, _, err := r.attach(g, nowhere, origin{launched: true})
				require.NoError(t, err)
				l := mute(t)
				p.state = st
				if st == connected || st == unresponsive {
					p.link = l
				}
				want, ok := c.leads[st]
				if !ok {
					want = st
				}
				_, _, changed := p.snapshot()
				c.fire(t, p, l)
				_, now, _ := p.snapshot()
				require.Equal(t, want, now)
				require.Equal(t, want != st || slices.Contains(c.wakes, st), isDone(changed))
				if now == ended {
					require.Error(t, p.join(newGuest("c9", true), origin{}), "nobody joins what has ended")
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

// TestTracesOfAProcess are those of the member that started it, after that one has left too, and of the ones that are behind it now:
// a pod's shim, or a warm one, that serves thousands one after the other keeps nothing of each.
func TestTracesOfAProcess(t *testing.T) {
	r, _ := idle(t)
	first, pause := newGuest("first", false), newGuest("pause", true)
	p, _, err := r.attach(first, nowhere, origin{launched: true})
	require.NoError(t, err)
	require.NoError(t, p.join(pause, origin{}))
	for n := range 1000 {
		g := newGuest(fmt.Sprint("c", n), true)
		require.NoError(t, p.join(g, origin{}))
		require.Same(t, p, g.in)
		if n%2 == 0 {
			require.False(t, p.leave(g))
		} else {
			require.Equal(t, 2, p.remove(g))
		}
	}
	require.False(t, p.leave(first))
	tokens, dirs := p.traces()
	require.ElementsMatch(t, []string{"token-of-first", "token-of-pause"}, tokens)
	require.ElementsMatch(t, []string{"/nowhere/first", "/nowhere/pause"}, dirs)

	require.True(t, p.leave(pause))
	p.stay(pause)
	tokens, dirs = p.traces()
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
			{"empty", (*Process).closeIfEmpty, c.empty},
			{"alone", func(p *Process) bool { return p.closeIfAlone(one) }, c.alone},
			{"abandoned", (*Process).closeIfAbandoned, c.abandoned},
		} {
			t.Run(c.name+"/"+x.name, func(t *testing.T) {
				r, _ := idle(t)
				p := newProcess(r, nowhere)
				for _, g := range c.in {
					require.NoError(t, p.join(g, origin{}))
				}
				require.Equal(t, x.want, x.close(p))
				err := p.join(newGuest("late", true), origin{})
				if !x.want {
					require.NoError(t, err)
					return
				}
				require.ErrorIs(t, err, errClosing)
				p.reopen()
				require.NoError(t, p.join(newGuest("late", true), origin{}))
				p.end()
			})
		}
	}
}

// TestIsCurrent: whose word on a task need not be asked for.
func TestIsCurrent(t *testing.T) {
	for _, c := range []struct {
		name    string
		version int
		st      processState
		probing bool
		want    bool
	}{
		{"connected", 3, connected, false, true},
		{"an old shim", 2, connected, false, false},
		{"being probed", 3, connected, true, false},
		{"silent", 3, unresponsive, true, false},
		{"without a connection", 3, connecting, false, false},
		{"ended", 3, ended, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := idle(t)
			p := newProcess(r, nowhere)
			p.version, p.state, p.probing = c.version, c.st, c.probing
			require.Equal(t, c.want, p.current())
		})
	}
}
