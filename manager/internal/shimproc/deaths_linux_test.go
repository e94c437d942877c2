// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// countedDeaths are those that are counted, by their proof.
func countedDeaths(t *testing.T) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, metrics.Register(r, "v0", "v0"))
	families, err := r.Gather()
	require.NoError(t, err)
	deaths := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "shimyard_deaths_total" {
				deaths[m.Label[0].GetValue()] += m.GetCounter().GetValue()
			}
		}
	}
	return deaths
}

// TestDeathsThatCount: of a process that serves something and that the daemon has not ended by itself.
func TestDeathsThatCount(t *testing.T) {
	for name, c := range map[string]struct {
		verified bool
		given    func(t *testing.T, p *Process, g *guest)
		proof    string // "" where it is not counted
	}{
		"by its pid":     {true, nil, "pid"},
		"by its address": {false, nil, "address"},
		"it serves nothing": {true, func(t *testing.T, p *Process, g *guest) {
			require.NoError(t, p.KeepFor(&host{}, KeptFacts{}))
			p.Remove(g)
		}, ""},
		"it was shut down": {true, func(_ *testing.T, p *Process, g *guest) { p.Leave(g) }, ""},
		"it was silent for longer than is configured": {true, func(t *testing.T, p *Process, _ *guest) {
			p.reg.config.EscalateAfter = time.Minute
			p.put(Unresponsive, time.Now().Add(-time.Hour))
			by, ok := p.overdue()
			require.True(t, ok)
			require.True(t, p.Kill(t.Context(), by))
		}, ""},
		"it serves creates that have failed": {true, func(t *testing.T, p *Process, g *guest) {
			g.says.Abandoned = true
			by, ok := p.CloseIfAbandoned()
			require.True(t, ok)
			require.True(t, p.Kill(t.Context(), by))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := idle(t)
			var pid shimclient.ProcessID
			if c.verified {
				pid = living(t)
			}
			g := newGuest("c1", false)
			p, _, err := r.Attach(g, nowhere, Origin{Launched: true, Pid: pid})
			require.NoError(t, err)
			before := countedDeaths(t)
			if c.given != nil {
				c.given(t, p, g)
			}
			if !p.IsDead() {
				p.die("it is a test")
			}
			after := countedDeaths(t)
			if c.proof != "" {
				before[c.proof]++
			}
			require.Equal(t, before, after)
		})
	}
}
