// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

type fixed Now

func (f *fixed) Now() Now { return Now(*f) }

func registry(t *testing.T) *prometheus.Registry {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, Register(r, "v1", "2.4.2"))
	require.NoError(t, Register(r, "v1", "2.4.2"), "again")
	return r
}

// anew makes all as at the start of a daemon that keeps runc's name.
func anew(t *testing.T) *prometheus.Registry {
	t.Helper()
	runtimes = newRuntimeNames()
	for _, c := range collectors() {
		if v, ok := c.(interface{ Reset() }); ok {
			v.Reset()
		}
	}
	handles.seconds.Clear()
	handles.ended.Clear()
	handles.passed.Clear()
	phases = phasesOnce()
	r := registry(t)
	Keep(runc, false)
	return r
}

const runc = "io.containerd.runc.v2"

// useAll makes at least one series of every metric.
func useAll() {
	Created(runc, Warm, time.Millisecond)
	CreateFailed(runc, "", ReasonRuntime)
	Phase(PhaseQueue, time.Now())
	Deleted(runc, time.Millisecond)
	Exec("start")
	RPC("State", "OK", time.Millisecond)
	DeadlinePassed("State")
	BreakerTo(runc, "unresponsive")
	Reconnected("connected")
	Died(runc, "pid")
	ExitTold("replay")
	RestoreStage("listed", time.Second)
	Restored("running")
	WarmRequest(runc, "hit")
	WarmEnded("idle")
	Cleanup(true)
}

// TestNames holds names, helps and types to Prometheus's own linter.
func TestNames(t *testing.T) {
	r := anew(t)
	useAll()
	s := &fixed{Instances: map[Instances]int{{"task", "running", runc, "default"}: 1},
		Processes: map[Processes]int{{"connected", runc}: 1},
		WarmShims: map[WarmShims]int{{runc, "idle"}: 1}}
	Follow(s)
	t.Cleanup(func() { Unfollow(s) })
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)
	families, err := r.Gather()
	require.NoError(t, err)
	require.Len(t, families, len(collectors())-1+7, "every metric has a series")
	for _, f := range families {
		require.True(t, strings.HasPrefix(f.GetName(), prefix), f.GetName())
		for _, m := range f.Metric {
			for _, l := range m.Label {
				require.NotContains(t, []string{"id", "pid", "path", "container"}, l.GetName())
			}
		}
	}
}

func TestGauges(t *testing.T) {
	r := anew(t)
	n, err := testutil.GatherAndCount(r, prefix+"launch_queue")
	require.NoError(t, err)
	require.Zero(t, n, "no source, no gauges")
	s := &fixed{
		Instances: map[Instances]int{
			{"task", "running", runc, "default"}:          2,
			{"task", "running", "/opt/shim-a", "default"}: 1, {"task", "running", "/opt/shim-b", "default"}: 3,
		},
		Processes: map[Processes]int{{"connected", "/opt/shim-a"}: 1, {"connected", "/opt/shim-b"}: 1}, LaunchQueue: 4,
		CleanupsPending: 1,
	}
	Follow(s)
	t.Cleanup(func() { Unfollow(s) })
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP shimyard_instances Tasks and sandboxes.
# TYPE shimyard_instances gauge
shimyard_instances{kind="task",namespace="default",runtime="io.containerd.runc.v2",state="running"} 2
shimyard_instances{kind="task",namespace="default",runtime="unknown",state="running"} 4
# HELP shimyard_processes Shim processes.
# TYPE shimyard_processes gauge
shimyard_processes{runtime="unknown",state="connected"} 2
# HELP shimyard_launch_queue Launches of shims that wait for their turn.
# TYPE shimyard_launch_queue gauge
shimyard_launch_queue 4
# HELP shimyard_unresponsive_oldest_seconds For how long the shim that has been silent longest has not answered; 0 when all answer.
# TYPE shimyard_unresponsive_oldest_seconds gauge
shimyard_unresponsive_oldest_seconds 0
`), prefix+"instances", prefix+"processes", prefix+"launch_queue", prefix+"unresponsive_oldest_seconds"))

	later := &fixed{LaunchQueue: 9}
	Follow(later)
	Unfollow(s) // not the one any more
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP shimyard_launch_queue Launches of shims that wait for their turn.
# TYPE shimyard_launch_queue gauge
shimyard_launch_queue 9
`), prefix+"launch_queue"))
	Unfollow(later)
}

// TestBounded: what clients make up does not make series without end.
func TestBounded(t *testing.T) {
	anew(t)
	all := make(map[Instances]int)
	for n := range 1000 {
		all[Instances{"task", "running", runc, fmt.Sprint("ns", n)}] = 1
	}
	all[Instances{"task", "running", runc, "large"}] = 50
	out := bounded(all)
	require.Len(t, out, namespaceLimit)
	require.Equal(t, 50, out[Instances{"task", "running", runc, "large"}])
	require.Equal(t, 1000-(namespaceLimit-2), out[Instances{"task", "running", runc,
		OtherNamespaces}])
}

func BenchmarkRPC(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		RPC("State", "OK", time.Millisecond)
	}
}
