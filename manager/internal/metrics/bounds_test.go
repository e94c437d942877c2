// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// seriesLimit is what the package's doc promises, runtimeSeries what each runtime that the config names may add.
const (
	seriesLimit   = 2000
	runtimeSeries = 125
)

// methods of the APIs of shims, but those that are not counted.
func methods() (names []string) {
	for _, file := range []protoreflect.FileDescriptor{
		taskapi.File_runtime_task_v3_shim_proto, sandboxapi.File_runtime_sandbox_v1_sandbox_proto,
	} {
		of := file.Services().Get(0).Methods()
		for n := range of.Len() {
			if name := string(of.Get(n).Name()); !strings.HasPrefix(name, "Wait") {
				names = append(names, name)
			}
		}
	}
	return names
}

// series are the lines that a scrape has, without comments.
func series(t *testing.T, r *prometheus.Registry) (n int) {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	var text bytes.Buffer
	for _, f := range families {
		_, err := expfmt.MetricFamilyToText(&text, f)
		require.NoError(t, err)
	}
	for line := range strings.Lines(text.String()) {
		if !strings.HasPrefix(line, "#") {
			n++
		}
	}
	return n
}

// countAll counts all that can come about with a runtime. Only one that the config names can have warm shims.
func countAll(runtime string, warm bool) {
	for _, source := range []string{Start, Warm, Join} {
		if source != Warm || warm {
			Created(runtime, source, time.Second)
		}
	}
	for _, source := range sourcesFailed {
		for _, reason := range reasons {
			CreateFailed(runtime, source, reason)
		}
	}
	Deleted(runtime, time.Second)
	BreakerTo(runtime, "connected")
	Died(runtime, "address")
	WarmRequest(runtime, "hit")
}

// crowd is one of everything, in many namespaces.
func crowd(s *fixed, runtime string, warm bool, namespaces int) {
	for _, state := range processStates {
		s.Processes[Processes{state, runtime}] = 1
	}
	for _, state := range warmStates {
		if warm {
			s.WarmShims[WarmShims{runtime, state}] = 1
		}
	}
	for n := range namespaces {
		for _, kind := range kinds {
			for _, state := range instanceStates {
				s.Instances[Instances{kind, state, runtime, fmt.Sprint("ns", n)}] = 1
			}
		}
	}
}

// TestSeriesAreBounded: whatever clients make up and shims answer, a scrape has no more than so many series.
func TestSeriesAreBounded(t *testing.T) {
	r := anew(t)
	s := &fixed{Instances: map[Instances]int{}, Processes: map[Processes]int{}, WarmShims: map[WarmShims]int{}}
	Follow(s)
	t.Cleanup(func() { Unfollow(s) })
	use := func(runtime string, warm bool) {
		countAll(runtime, warm)
		crowd(s, runtime, warm, 70)
	}
	use(runc, true)
	use("/opt/shim", false)
	for n := range 40 {
		for _, prefix := range []string{"io.containerd", "x1", "x2"} {
			name := fmt.Sprintf("%s.made-up%d.v1", prefix, n)
			Resolved(name)
			use(name, false)
		}
		use(fmt.Sprintf("not.resolved%d.v1", n), false)
	}
	for _, method := range methods() {
		DeadlinePassed(method)
		for n := range 99 {
			RPC(method, fmt.Sprintf("Code(%d)", n), time.Second)
		}
		for _, code := range codes {
			RPC(method, code, time.Second)
		}
	}
	for n := range instanceSeries / 2 { // the largest namespaces fill their share to the last
		for _, kind := range kinds {
			s.Instances[Instances{kind, "running", runc, fmt.Sprint("large", n/2)}] = 1000
			s.Instances[Instances{kind, "dead", runc, fmt.Sprint("large", n/2)}] = 1000
		}
	}
	Phase(PhaseQueue, time.Now())
	for _, command := range values["shim_execs_total"]["command"] {
		Exec(command)
	}
	for _, stage := range values["restore_seconds"]["stage"] {
		RestoreStage(stage, time.Second)
	}
	all := series(t, r)
	require.Less(t, all, seriesLimit)
	require.Greater(t, all, seriesLimit-runtimeSeries, "else there is room for one more runtime")
	requireValues(t, r)

	Keep("io.containerd.configured.v1", false)
	use("io.containerd.configured.v1", true)
	require.LessOrEqual(t, series(t, r), all+runtimeSeries)
}

// requireValues: no label says what is not in its list.
func requireValues(t *testing.T, r *prometheus.Registry) {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	for _, f := range families {
		closed := values[strings.TrimPrefix(f.GetName(), prefix)]
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if of := closed[l.GetName()]; of != nil {
					require.Contains(t, of, l.GetValue(), f.GetName())
				}
			}
		}
	}
}

// TestRuntimeNames: what is built in or configured keeps its name, whatever clients make up.
func TestRuntimeNames(t *testing.T) {
	anew(t)
	require.Equal(t, Unknown, Runtime("io.containerd.kata.v2"), "it has not resolved")
	Resolved("io.containerd.kata.v2")
	require.Equal(t, "io.containerd.kata.v2", Runtime("io.containerd.kata.v2"))
	for n := range 50 {
		name := fmt.Sprintf("x%d.runc.v2", n)
		Resolved(name)
		require.Equal(t, runc, Runtime(name), "it has the same binary")
		Resolved(fmt.Sprintf("x%d.kata.v2", n))
	}
	for n := range runtimeLimit - 1 {
		name := fmt.Sprintf("io.containerd.free%d.v1", n)
		Resolved(name)
		require.Equal(t, name, Runtime(name), "names with the same binary have taken no place")
	}
	Resolved("io.containerd.late.v1")
	require.Equal(t, Unknown, Runtime("io.containerd.late.v1"))
	for n := range 20 {
		name := fmt.Sprintf("io.containerd.configured%d.v1", n)
		Keep(name, n%2 == 0)
		require.Equal(t, name, Runtime(name))
	}
	Keep("own.runc.v2", true)
	require.Equal(t, "own.runc.v2", Runtime("own.runc.v2"))
	require.Equal(t, runc, Runtime(runc))
	Keep("apart.shim.v1", true)
	require.Equal(t, Unknown, Runtime("other.shim.v1"), "it has another binary")
	for _, name := range []string{"", "/usr/bin/shim"} {
		Keep(name, false)
		Resolved(name)
		require.Equal(t, Unknown, Runtime(name))
	}
}

// TestCountersBeginAtZero: what is counted first is an increase for Prometheus, too.
func TestCountersBeginAtZero(t *testing.T) {
	r := anew(t)
	Resolved("io.containerd.kata.v2")
	zero := func(name string, labels ...string) {
		t.Helper()
		families, err := r.Gather()
		require.NoError(t, err)
		for _, f := range families {
			for _, m := range f.Metric {
				got := []string{}
				for _, l := range m.Label {
					got = append(got, l.GetName(), l.GetValue())
				}
				if f.GetName() == prefix+name && fmt.Sprint(got) == fmt.Sprint(labels) {
					require.Zero(t, m.GetCounter().GetValue(), "%s %s", name, labels)
					return
				}
			}
		}
		require.Fail(t, "not there from the start", "%s %s", name, labels)
	}
	for _, runtime := range []string{runc, "io.containerd.kata.v2", Unknown} {
		for _, proof := range []string{"pid", "address"} {
			zero("deaths_total", "proof", proof, "runtime", runtime)
		}
		for _, reason := range reasons {
			zero("create_failures_total", "reason", reason, "runtime", runtime)
		}
		zero("creates_total", "result", "failed", "runtime", runtime, "source", Unknown)
		zero("creates_total", "result", "ok", "runtime", runtime, "source", Start)
		zero("breaker_transitions_total", "runtime", runtime, "to", "unresponsive")
		zero("warm_requests_total", "result", "miss", "runtime", runtime)
	}
	zero("cleanup_attempts_total", "result", "failed")
	zero("reconnects_total", "result", "dead")
	zero("exits_told_total", "by", "dead_shim")
	zero("restored_total", "outcome", "left_alone")
	zero("warm_ended_total", "reason", "memory")
	RPC("State", "OK", time.Millisecond)
	zero("deadlines_passed_total", "method", "State")
	Died(runc, "pid")
	Keep(runc, false)
	Resolved(runc)
	require.NoError(t, Register(r, "v1", "2.4.2"))
	require.Equal(t, 1.0, sumOf(t, r, "deaths_total"), "what is counted stays")
}

// sumOf is the sum of a counter.
func sumOf(t *testing.T, r *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == prefix+name {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}
