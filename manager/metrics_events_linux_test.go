// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// change of a counter since now.
func (s *scraped) change(name string, labels ...string) func() float64 {
	s.t.Helper()
	was := s.sum(name, labels...)
	return func() float64 { return s.sum(name, labels...) - was }
}

// phases are those of the creates from now on that were measured.
func (s *scraped) phases() func(phase string) float64 {
	s.t.Helper()
	was := make(map[string]func() float64)
	for _, phase := range []string{"resolve", "queue", "bundle", "launch", "adopt", "dial", "mounts", "create_rpc"} {
		was[phase] = s.change("create_phase_duration_seconds", "phase", phase)
	}
	return func(phase string) float64 { return was[phase]() }
}

// TestReconnectsAreCounted by what becomes of the shim that was lost.
func TestReconnectsAreCounted(t *testing.T) {
	s := scrape(t)
	y := newYard(t, shimtest.Scenario{Rules: []shimtest.Rule{{Method: "Stats", Times: 1, Drop: true}}})
	y.run("c1", "sleep")
	again, dead := s.change("reconnects_total", "result", "connected"), s.change("reconnects_total", "result", "dead")
	_, err := mustGet(y, "c1").Stats(y.ctx)
	require.NoError(t, err, "it is asked once more")
	y.until("it is connected again", func() bool { return again() == 1 })
	require.Zero(t, dead())
	y.killShim("c1")
	y.until("it is dead", func() bool { return dead() == 1 })
	require.Equal(t, 1.0, again())
	y.empty()
}

// TestDeathsAreCounted by their proof, and with them the exits that are told for the shims.
func TestDeathsAreCounted(t *testing.T) {
	s := scrape(t)
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	y.run("c2", "sleep")
	byPid, byAddress := s.change("deaths_total", "proof", "pid"), s.change("deaths_total", "proof", "address")
	told := s.change("exits_told_total", "by", "dead_shim")
	y.killShim("c1")
	y.until("it is proven by the pid", func() bool { return byPid() == 1 })
	require.Zero(t, byAddress())
	y.until("the exit is told", func() bool { return told() == 1 })
	y.remove("c2")
	y.empty()
	require.Equal(t, 1.0, byPid(), "a shim that was shut down has not died")
}

// TestToldExitsAreCounted: those told for a shim that lives, and those told again.
func TestToldExitsAreCounted(t *testing.T) {
	s := scrape(t)
	y := newYard(t, deaf())
	replayed, repeated := s.change("exits_told_total", "by", "replay"), s.change("exits_told_total", "by", "repeat")
	_, err := y.run("c1", "exit", "7").Wait(y.ctx)
	require.NoError(t, err)
	i := y.instance("c1")
	edit(i, func(r *bundle.Record) { r.Task.Exit.At = time.Now().Add(-ownRetries) })
	i.replay()
	require.Equal(t, 1.0, replayed())
	require.Zero(t, repeated())
	edit(i, func(r *bundle.Record) { r.Task.Exit.Owed = 1 })
	i.repeatNow()
	require.Equal(t, 1.0, repeated())
	require.Equal(t, 1.0, replayed())
	y.remove("c1")
	y.empty()
}

// TestRestoredAreCounted by what becomes of them.
func TestRestoredAreCounted(t *testing.T) {
	s := scrape(t)
	y := newYard(t, shimtest.Scenario{})
	y.run("runs", "sleep")
	y.run("dies", "sleep")
	y.launchOnly("cut-short")
	odd := y.bundle("odd")
	counts := make(map[string]func() float64)
	for _, outcome := range metrics.Outcomes {
		counts[outcome] = s.change("restored_total", "outcome", outcome)
	}
	y.restart(func() {
		y.killShim("dies")
		require.NoError(t, os.MkdirAll(filepath.Join(odd, "data"), 0o700))
	})
	for _, outcome := range metrics.Outcomes {
		y.until(outcome, func() bool { return counts[outcome]() == 1 })
	}
	require.NoError(t, os.RemoveAll(odd))
	y.remove("runs")
	y.empty()
}

// TestExecsAndPhasesAreCounted: of a create that starts a shim, and of what asks a shim's binary.
func TestExecsAndPhasesAreCounted(t *testing.T) {
	yes := true
	s := scrape(t)
	y := newYard(t, shimtest.Scenario{Info: shimtest.InfoAnswer{IDMap: &yes}})
	starts, deletes, infos := s.change("shim_execs_total", "command", "start"),
		s.change("shim_execs_total", "command", "delete"), s.change("shim_execs_total", "command", "info")
	took := s.phases()
	y.start("c1", withMount(y.mapped()))
	for _, phase := range []string{"resolve", "queue", "bundle", "launch", "dial", "mounts", "create_rpc"} {
		require.Equal(t, 1.0, took(phase), phase)
	}
	require.Zero(t, took("adopt"))
	y.remove("c1")
	y.empty()
	require.Equal(t, 1.0, starts())
	require.Equal(t, 1.0, infos())
	require.Equal(t, 1.0, deletes())
}

// TestWarmRequestsAreCounted, and that a create which a warm shim serves adopts and launches nothing.
func TestWarmRequestsAreCounted(t *testing.T) {
	s := scrape(t)
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	of := func(result string) func() float64 {
		return s.change("warm_requests_total", "runtime", plugins.RuntimeRuncV2, "result", result)
	}
	hit, miss, ineligible := of("hit"), of("miss"), of("ineligible")
	y.pooled("c1")
	require.Equal(t, []float64{0, 1, 0}, []float64{hit(), miss(), ineligible()})
	y.spares(1)
	took := s.phases()
	y.pooled("c2")
	require.Equal(t, []float64{1, 1, 0}, []float64{hit(), miss(), ineligible()})
	require.Equal(t, 1.0, took("adopt"))
	require.Equal(t, 1.0, took("bundle"))
	require.Zero(t, took("launch"))
	y.pooled("c3", func(o *runtime.CreateOpts) { o.Spec = y.grouped("group").Spec })
	require.Equal(t, []float64{1, 1, 1}, []float64{hit(), miss(), ineligible()})
	for _, id := range []string{"c3", "c2", "c1"} {
		y.remove(id)
	}
}

// TestCleanupsAreCounted: those that have failed are pending until one succeeds.
func TestCleanupsAreCounted(t *testing.T) {
	s := scrape(t)
	y := newYard(t, shimtest.Scenario{})
	ok, failed := s.change("cleanup_attempts_total", "result", "ok"),
		s.change("cleanup_attempts_total", "result", "failed")
	y.kill(y.run("c1", "sleep"))
	let := y.hold(y.bundle("c1"))
	_, err := y.tasks.Delete(y.ctx, "c1")
	require.NoError(t, err)
	y.until("a clean-up has failed", func() bool { return failed() > 0 })
	y.until("it is pending", func() bool { return s.sum("cleanups_pending") == 1 })
	require.Positive(t, s.sum("cleanup_oldest_seconds"))
	require.Equal(t, 1.0, s.sum("instances", "state", "cleaning"))
	require.Zero(t, ok())
	let()
	y.until("it is cleaned up", func() bool { return ok() == 1 })
	y.empty()
	require.Zero(t, s.sum("cleanups_pending"))
	require.Zero(t, s.sum("cleanup_oldest_seconds"))
}

// TestLaunchQueue has the launches that wait for their turn.
func TestLaunchQueue(t *testing.T) {
	s := scrape(t)
	y := newYard(t, shimtest.Scenario{Start: shimtest.StartFaults{HangAt: shimtest.BeforeFork}})
	require.Zero(t, s.sum("launch_queue"))
	var ids []string
	var creates errgroup.Group
	enough := func() bool { return s.sum("launch_queue") >= 2 }
	for n := 0; !enough(); n++ {
		require.Less(t, n, 200, "nothing waits")
		id := fmt.Sprint("c", n)
		ids = append(ids, id)
		creates.Go(func() error {
			_, err := y.tasks.Create(y.ctx, id, y.opts("sleep"))
			return err
		})
		y.until("the create has come so far", func() bool { return y.instance(id) != nil || enough() })
	}
	y.shim.Update(func(s *shimtest.Scenario) { s.Start = shimtest.StartFaults{} })
	require.NoError(t, creates.Wait())
	require.Zero(t, s.sum("launch_queue"))
	for _, id := range ids {
		y.inState(id, life.Running)
		y.remove(id)
	}
	y.empty()
}

// TestInfo: the labels are the versions.
func TestInfo(t *testing.T) {
	require.Equal(t, 1.0, scrape(t).sum("info", "version", "v0", "containerd_version", "2.4.2"))
}
