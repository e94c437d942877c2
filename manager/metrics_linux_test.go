// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// scraped is what Prometheus gets.
type scraped struct {
	t *testing.T
	r *prometheus.Registry
}

func scrape(t *testing.T) *scraped {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, RegisterMetrics(r, "v0", "2.4.2"))
	return &scraped{t, r}
}

// sum of all series of a metric that have the given labels: their values, or how many observations there were.
func (s *scraped) sum(name string, labels ...string) (sum float64) {
	s.t.Helper()
	families, err := s.r.Gather()
	require.NoError(s.t, err)
	for _, f := range families {
		if f.GetName() != "shimyard_"+name {
			continue
		}
		for _, m := range f.Metric {
			if has(m, labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

func has(m *dto.Metric, labels []string) bool {
	got := make(map[string]string)
	for _, l := range m.Label {
		got[l.GetName()] = l.GetValue()
	}
	for n := 0; n < len(labels); n += 2 {
		if got[labels[n]] != labels[n+1] {
			return false
		}
	}
	return true
}

// TestMetrics: what is counted over the life of some containers, a stall, a death and a restart.
func TestMetrics(t *testing.T) {
	s := scrape(t)
	y := newYard(t, shimtest.Scenario{})
	before := func(name string, labels ...string) func() float64 {
		was := s.sum(name, labels...)
		return func() float64 { return s.sum(name, labels...) - was }
	}
	created := before("creates_total", "source", "start", "result", "ok")
	failed := before("create_failures_total", "reason", metrics.ReasonRuntime)
	exists := before("create_failures_total", "reason", metrics.ReasonExists)
	took, phase := before("create_duration_seconds"), before("create_phase_duration_seconds", "phase", "create_rpc")
	queued, dialled := before("create_phase_duration_seconds", "phase", "queue"),
		before("create_phase_duration_seconds", "phase", "dial")
	starts, deletes := before("shim_execs_total", "command", "start"), before("delete_duration_seconds")
	rpcs := before("rpcs_total", "method", "Create", "code", "OK")
	deaths, told := before("deaths_total"), before("exits_told_total", "by", "dead_shim")

	y.run("c1", "sleep")
	y.run("c2", "sleep")
	opts := y.opts("sleep")
	opts.Runtime = "io.containerd.no-such.v1"
	_, err := y.tasks.Create(y.ctx, "c3", opts)
	require.Error(t, err)
	_, err = y.tasks.Create(y.ctx, "c1", y.opts("sleep"))
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	require.Equal(t, 2.0, created())
	require.Equal(t, 1.0, failed())
	require.Zero(t, exists(), "an id in use never comes to a create")
	require.Equal(t, 2.0, took())
	require.Equal(t, 2.0, phase())
	require.Equal(t, 2.0, queued())
	require.Equal(t, 2.0, dialled())
	require.Equal(t, 2.0, starts())
	require.Equal(t, 2.0, rpcs())
	require.Equal(t, 2.0, s.sum("instances", "kind", "task", "state", "running", "namespace", testNamespace, "runtime",
		"unknown"))
	require.Equal(t, 2.0, s.sum("processes", "state", "connected"))

	restored := before("restored_total", "outcome", "running")
	y.hurry("c1", "c2")
	require.Equal(t, 2.0, restored())
	for _, stage := range []string{"listed", "read", "settled"} {
		require.Positive(t, s.sum("restore_seconds", "stage", stage), stage)
	}
	opened, closed := before("breaker_transitions_total", "to", "unresponsive"),
		before("breaker_transitions_total", "to", "connected")
	passed := before("deadlines_passed_total", "method", "Pids")
	cont := y.stop("c2")
	_, err = mustGet(y, "c2").Pids(y.ctx)
	require.Error(t, err)
	y.until("the breaker is open",
		func() bool { return processStateOf(y.instance("c2").process()) == shimproc.Unresponsive })
	require.Equal(t, 1.0, opened())
	require.Equal(t, 1.0, passed())
	require.Equal(t, 1.0, s.sum("processes", "state", "unresponsive"))
	require.Positive(t, s.sum("unresponsive_oldest_seconds"))
	cont()
	y.until("the breaker is closed", func() bool { return closed() == 1 })

	y.remove("c1")
	require.Equal(t, 1.0, deletes())
	require.NoError(t, y.shim.Daemon("c2").Kill())
	y.until("the death is told", func() bool { return told() == 1 })
	require.Equal(t, 1.0, deaths())
	y.empty()
	require.Zero(t, s.sum("instances"))
	require.Zero(t, s.sum("cleanups_pending"))
}

func TestReasons(t *testing.T) {
	at := func(phase string) *watched { return &watched{phase: phase} }
	for _, c := range []struct {
		phase string
		err   error
		want  string
	}{
		{metrics.PhaseLaunch, errors.Wrap(context.Canceled, "waiting"), metrics.ReasonCanceled},
		{metrics.PhaseLaunch, noBundle(errdefs.ErrAlreadyExists), metrics.ReasonExists},
		{metrics.PhaseCreate, shimproc.ErrDead, metrics.ReasonShimDied},
		{metrics.PhaseCreate, shimclient.ErrConnectionLost, metrics.ReasonShimDied},
		{metrics.PhaseResolve, errdefs.ErrInvalidArgument, metrics.ReasonSpec},
		{metrics.PhaseResolve, errdefs.ErrNotFound, metrics.ReasonRuntime},
		{metrics.PhaseLaunch, errors.Wrap(noBundle(errors.New("disk full")), "c1"), metrics.ReasonBundle},
		{metrics.PhaseLaunch, errors.New("exit status 1"), metrics.ReasonLaunch},
		{metrics.PhaseLaunch, shimproc.Unavailable("a", time.Now(), "cannot be reached"), metrics.ReasonConnect},
		{metrics.PhaseMounts, errors.New("no such device"), metrics.ReasonMounts},
		{metrics.PhaseCreate, errors.New("runc create failed"), metrics.ReasonShim},
	} {
		require.Equal(t, c.want, at(c.phase).reason(c.err), "%s: %v", c.phase, c.err)
	}
	for _, phase := range []string{metrics.PhaseResolve, metrics.PhaseLaunch, metrics.PhaseMounts,
		metrics.PhaseCreate} {
		require.NotEmpty(t, reasonOfPhase[phase])
	}
}

// noBundle is the error of a bundle that could not be made.
func noBundle(why error) error { return metrics.MakingBundle(func() error { return why }) }
