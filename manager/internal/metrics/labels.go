// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// codeUnknown is gRPC's word for an error of no known class.
const codeUnknown = "Unknown"

// codes are gRPC's names of the classes of errors.
var codes = []string{"OK", "Canceled", codeUnknown, "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
	"PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal",
	"Unavailable", "DataLoss", "Unauthenticated"}

var (
	kinds          = []string{"sandbox", "task"}
	instanceStates = []string{"launching", "restoring", "running", "unresponsive", "reconnecting", "deleting", "cleaning",
		"dead"}
	processStates = []string{"connecting", "connected", "unresponsive", "ended"}
	warmStates    = []string{"entered", "idle", "serving", "retired", "ending"}
	sources       = []string{Start, Warm, Join}
	sourcesFailed = []string{Start, Warm, Join, Unknown}
	results       = []string{"ok", "failed"}
	reasons       = []string{ReasonCanceled, ReasonExists, ReasonSpec, ReasonRuntime, ReasonBundle, ReasonLaunch,
		ReasonConnect, ReasonMounts, ReasonShim, ReasonShimDied}
	phaseNames = []string{PhaseResolve, PhaseQueue, PhaseBundle, PhaseLaunch, PhaseAdopt, PhaseDial, PhaseMounts,
		PhaseCreate}
)

// Outcomes are what can become of an instance that a daemon finds at its start.
var Outcomes = []string{"running", "undone", "dead", "left_alone"}

// values are all that a label may say, by metric and label, where that is a closed list. The tests of the alerts and of
// the dashboard read it too. A counter with such labels is there from the start with each of them: Prometheus takes the
// first value that it sees for no increase, so that of one which is born with the first failure that failure is missed.
var values = map[string]map[string][]string{
	"creates_total":                 {"source": sourcesFailed, "result": results},
	"create_failures_total":         {"reason": reasons},
	"create_duration_seconds":       {"source": sources},
	"create_phase_duration_seconds": {"phase": phaseNames},
	"shim_execs_total":              {"command": {"start", "delete", "info"}},
	"rpcs_total":                    {"code": codes},
	"breaker_transitions_total":     {"to": {"unresponsive", "connected"}},
	"reconnects_total":              {"result": {"connected", "dead"}},
	"deaths_total":                  {"proof": {"pid", "address"}},
	"exits_told_total":              {"by": {"dead_shim", "replay", "repeat"}},
	"restore_seconds":               {"stage": {"listed", "read", "settled"}},
	"restored_total":                {"outcome": Outcomes},
	"warm_requests_total":           {"result": {"hit", "miss", "ineligible"}},
	"warm_ended_total":              {"reason": {"idle", "worn", "distrusted", "ceiling", "memory", "died", "stop"}},
	"cleanup_attempts_total":        {"result": results},
	"instances":                     {"kind": kinds, "state": instanceStates},
	"processes":                     {"state": processStates},
	"warm_shims":                    {"state": warmStates},
}

// labelled is a counter with its labels.
type labelled struct {
	vec    *prometheus.CounterVec
	name   string
	labels []string
}

// counters are all, filled as they are made.
var counters []labelled

// zero makes the counter's series, if it tells runtimes apart those of this one. One that has a label without a closed
// list has none before it counts something.
func (c labelled) zero(runtime string) {
	series := [][]string{nil}
	for _, label := range c.labels {
		of := values[c.name][label]
		if label == "runtime" {
			of = []string{runtime}
		}
		var longer [][]string
		for _, s := range series {
			for _, v := range of {
				longer = append(longer, append(slices.Clone(s), v))
			}
		}
		series = longer
	}
	for _, s := range series {
		c.vec.WithLabelValues(s...)
	}
}

// zeroRuntime makes the series of a runtime.
func zeroRuntime(name string) {
	for _, c := range counters {
		if slices.Contains(c.labels, "runtime") {
			c.zero(name)
		}
	}
}
