// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"os/exec"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// living is the process of a shim that can be killed.
func living(t *testing.T) shimclient.ProcessID {
	t.Helper()
	pid, err := shimclient.LookupProcess(shimtest.Child(t, exec.Command("sleep", "1000")).Process.Pid)
	require.NoError(t, err)
	return pid
}

// TestLicences: what gives the right to end a process by force, and that nothing else does. Each case is one that
// gives it, with one thing changed.
func TestLicences(t *testing.T) {
	type way func(*Process, *guest) (Licence, bool)
	var (
		unneeded  way = func(p *Process, g *guest) (Licence, bool) { return p.CloseIfUnneeded(g) }
		abandoned way = func(p *Process, _ *guest) (Licence, bool) { return p.CloseIfAbandoned() }
		overdue   way = func(p *Process, _ *guest) (Licence, bool) { return p.overdue() }
		said      way = func(p *Process, _ *guest) (Licence, bool) { return p.SaidYes(nil).licence() }
	)
	silentForLong := func(p *Process, _ *guest) {
		p.reg.config.EscalateAfter = time.Minute
		p.put(Unresponsive, time.Now().Add(-time.Hour))
	}
	all := func(ps ...func(*Process, *guest)) func(*Process, *guest) {
		return func(p *Process, g *guest) {
			for _, f := range ps {
				f(p, g)
			}
		}
	}
	put := func(st State, ago time.Duration) func(*Process, *guest) {
		return func(p *Process, _ *guest) { p.put(st, time.Now().Add(-ago)) }
	}
	joinedBy := func(p *Process, _ *guest) { _ = p.Join(newGuest("other", true), Origin{}) }
	gone := func(_ *Process, g *guest) { g.gone = true }
	undone := func(_ *Process, g *guest) { g.says.Abandoned = true }
	left := func(p *Process, g *guest) { p.Leave(g) }
	for _, c := range []struct {
		name   string
		ask    way
		given  func(*Process, *guest)
		ground ground // "" for no licence
	}{
		{"silent and its container gone", unneeded, gone, provenDead},
		{"silent and its container not gone", unneeded, nil, ""},
		{"its container gone, and it answers", unneeded, all(gone, put(Connected, 0)), ""},
		{"silent, its container gone, and another behind it", unneeded, all(gone, joinedBy), ""},
		{"silent, its container gone, and its pid not verified", unneeded,
			all(gone, func(p *Process, _ *guest) { p.unverify() }), ""},
		{"of one that is not behind it", unneeded, all(gone, left, joinedBy), ""},

		{"a create that is undone", abandoned, undone, neverCreated},
		{"a create that is not", abandoned, nil, ""},
		{"a create that is undone, and another task", abandoned, all(undone, joinedBy), ""},

		{"silent for long", overdue, silentForLong, configured},
		{"silent for long, and nothing is configured", overdue,
			all(silentForLong, func(p *Process, _ *guest) { p.reg.config.EscalateAfter = 0 }), ""},
		{"silent, and not for long", overdue, all(silentForLong, put(Unresponsive, 0)), ""},
		{"connecting for long", overdue, all(silentForLong, put(Connecting, time.Hour)), ""},

		{"said yes, and nobody is behind it", said, left, saidYes},
		{"said yes, and somebody is behind it", said, nil, ""},
		{"said yes, and was opened again", said, all(left, func(p *Process, _ *guest) { p.Reopen() }), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := idle(t)
			g := newGuest("c1", false)
			p, _, err := r.Attach(g, nowhere, Origin{Launched: true, Pid: living(t)})
			require.NoError(t, err)
			if c.given != nil {
				c.given(p, g)
			}
			by, ok := c.ask(p, g)
			require.Equal(t, c.ground != "", ok)
			require.Equal(t, c.ground, by.ground)
			p.End()
		})
	}
}

// TestKillNeedsALicence: the zero one gives no right.
func TestKillNeedsALicence(t *testing.T) {
	r, _ := idle(t)
	pid := living(t)
	g := newGuest("c1", false)
	g.says.Abandoned = true
	p, _, err := r.Attach(g, nowhere, Origin{Launched: true, Pid: pid})
	require.NoError(t, err)
	require.False(t, p.Kill(t.Context(), Licence{}))
	require.True(t, pid.Alive())
	by, ok := p.CloseIfAbandoned()
	require.True(t, ok)
	require.True(t, p.Kill(t.Context(), by))
	require.False(t, pid.Alive())
	require.True(t, p.IsDead())
	require.Equal(t, 1, g.deaths)
}

// TestLeftOver: nothing is ended of a launch while a process serves a task that was started by it.
func TestLeftOver(t *testing.T) {
	const token = "token-of-c1"
	for name, c := range map[string]struct {
		given func(*testing.T, *Registry, *Process, *guest)
		ok    bool
	}{
		"its task is there":             {func(*testing.T, *Registry, *Process, *guest) {}, false},
		"its task has left":             {func(_ *testing.T, _ *Registry, p *Process, g *guest) { p.Leave(g) }, true},
		"its create has failed":         {func(_ *testing.T, _ *Registry, _ *Process, g *guest) { g.says.Abandoned = true }, true},
		"its process is over":           {func(_ *testing.T, _ *Registry, p *Process, _ *guest) { p.End() }, true},
		"another's task is there alone": {func(_ *testing.T, _ *Registry, _ *Process, g *guest) { g.says.Token = "other" }, true},
		"it was kept warm and serves": {func(t *testing.T, _ *Registry, p *Process, g *guest) {
			g.says.Token = ""
			require.NoError(t, p.KeepFor(&host{}, KeptFacts{Token: token}))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := idle(t)
			g := newGuest("c1", false)
			p, _, err := r.Attach(g, nowhere, Origin{Launched: true})
			require.NoError(t, err)
			c.given(t, r, p, g)
			by, err := r.LeftOver(token)
			require.Equal(t, c.ok, err == nil, "%v", err)
			require.Equal(t, !c.ok, errdefs.IsFailedPrecondition(err))
			require.Equal(t, c.ok, by == Licence{ground: leftOver, launch: token})
		})
	}
}

// host keeps a process without members.
type host struct{ p *Process }

func (h *host) Take(p *Process) { h.p = p }
func (h *host) StartID() string { return "host" }
func (h *host) Runtime() string { return "io.containerd.runc.v2" }

// TestEndLaunchNeedsALicence for it: neither the zero one nor that for a process gives the right, nor does that for a
// launch give the right to kill a process.
func TestEndLaunchNeedsALicence(t *testing.T) {
	require.True(t, errdefs.IsInvalidArgument(EndLaunch(t.Context(), Licence{}, nil)))
	require.True(t, errdefs.IsInvalidArgument(EndLaunch(t.Context(), Licence{ground: saidYes}, nil)))
	r, _ := idle(t)
	pid := living(t)
	p, _, err := r.Attach(newGuest("c1", false), nowhere, Origin{Launched: true, Pid: pid})
	require.NoError(t, err)
	token := shimclient.NewToken()
	by, err := r.LeftOver(token)
	require.NoError(t, err)
	require.False(t, p.Kill(t.Context(), by))
	require.True(t, pid.Alive())

	cmd := exec.Command("sleep", "1000")
	cmd.Env = append(cmd.Environ(), shimclient.TokenEnv+"="+token)
	shimtest.Child(t, cmd)
	require.NoError(t, EndLaunch(t.Context(), by, nil))
	require.Error(t, cmd.Wait(), "it was killed")
}
