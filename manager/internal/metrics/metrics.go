// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package metrics counts what the manager does, for Prometheus. All names begin with shimyard_. No label holds an id, a
// pid or a path; whatever a client can make up is bounded, see Runtime and namespaceLimit, so that a daemon has less
// than 2,000 series whatever its clients and its shims do. Each runtime that the config names adds at most 125 to that.
//
// Counters and histograms are changed where something happens, through the functions of this package, which cost some
// tens of nanoseconds and are safe for concurrent use. Gauges are read from a Source while Prometheus scrapes. The
// metrics are those of the process: managers that follow one another, as in tests, share them.
package metrics

import (
	"sync"
	"time"

	"github.com/pkg/errors"
	"github.com/prometheus/client_golang/prometheus"
)

const prefix = "shimyard_"

// durations are the buckets of everything that takes a shim's or a disk's time, in seconds.
var durations = []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60}

// calls are the buckets of calls to a shim, in seconds.
var calls = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 30, 120}

var (
	info = gauge("info", "What runs; the value is 1.", "version", "containerd_version")

	creates = counter("creates_total",
		"Creates of tasks and sandboxes, by where the shim came from and how they ended.", "runtime", "source",
		"result")

	createFailures = counter("create_failures_total", "Creates that failed, by the reason.", "runtime", "reason")
	createSeconds  = histogram("create_duration_seconds", "Duration of creates that succeeded.", durations, "runtime",
		"source")
	phaseSeconds = histogram("create_phase_duration_seconds", "Duration of the phases of creates.", durations,
		"phase")
	deleteSeconds = histogram("delete_duration_seconds", "Duration of deletes of tasks that succeeded.", durations,
		"runtime")

	shimExecs = counter("shim_execs_total", "Executions of shims' binaries.", "command")

	rpcSeconds = histogram("rpc_duration_seconds", "Duration of calls to shims, without Wait.", calls, "method")
	rpcs       = counter("rpcs_total", "Calls to shims that have ended, without Wait.", "method", "code")
	deadlines  = counter("deadlines_passed_total",
		"Calls that a shim left unanswered for the whole deadline of their method.", "method")
	breakers = counter("breaker_transitions_total", "Shim processes that became unresponsive, or answered again.",
		"runtime", "to")
	reconnects = counter("reconnects_total", "Connections to shims that were lost and what became of them.", "result")
	deaths     = counter("deaths_total",
		"Shim processes that were proven dead, by the proof, while they served something and not by the daemon's hand.",
		"runtime", "proof")
	exitsTold = counter("exits_told_total", "Exit events that the daemon published for a shim that could not.", "by")
	restores  = gauge("restore_seconds",
		"Time from the start of the runtime plugin to a stage of the restore, in this daemon's life.", "stage")
	restored = counter("restored_total", "Instances found at the start of the daemon, by what became of them.",
		"outcome")
	warmAsked = counter("warm_requests_total", "Creates by whether a warm shim could serve them.", "runtime",
		"result")
	warmEnded   = counter("warm_ended_total", "Warm shims that were ended, by the reason.", "reason")
	cleanupRuns = counter("cleanup_attempts_total", "Attempts to remove what is left of an instance.", "result")
)

func gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + name, Help: help}, labels)
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
	counters = append(counters, labelled{vec, name, labels})
	return vec
}

func histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: buckets},
		labels)
}

// collectors are all that Register registers.
func collectors() []prometheus.Collector {
	return []prometheus.Collector{
		info, creates, createFailures, createSeconds, phaseSeconds, deleteSeconds, shimExecs, rpcSeconds, rpcs,
		deadlines, breakers,
		reconnects, deaths, exitsTold, restores, restored, warmAsked, warmEnded, cleanupRuns, gauges,
	}
}

// Register registers all metrics, with the versions of the daemon as constants of the info metric, and makes the
// counters begin at zero. Registering again does nothing.
func Register(r prometheus.Registerer, version, containerdVersion string) error {
	for _, c := range collectors() {
		var twice prometheus.AlreadyRegisteredError
		if err := r.Register(c); err != nil && !errors.As(err, &twice) {
			return errors.Wrap(err, "cannot register the metrics")
		}
	}
	info.WithLabelValues(version, containerdVersion).Set(1)
	for _, c := range counters {
		c.zero(Unknown)
	}
	return nil
}

// Where a shim came from.
const (
	Start = "start"
	Warm  = "warm"
	Join  = "join"
)

// The reasons of failed creates.
const (
	ReasonCanceled = "canceled"  // the caller gave up
	ReasonExists   = "exists"    // the id is in use
	ReasonSpec     = "spec"      // the spec or the options cannot be used
	ReasonRuntime  = "runtime"   // no such runtime, or not allowed
	ReasonBundle   = "bundle"    // the files could not be written
	ReasonLaunch   = "launch"    // the shim did not start
	ReasonConnect  = "connect"   // it started and could not be connected to
	ReasonMounts   = "mounts"    // the mount manager failed
	ReasonShim     = "shim"      // the shim refused the Create
	ReasonShimDied = "shim_died" // the shim died, or the connection was lost
)

// Created counts a create that succeeded.
func Created(runtime, source string, took time.Duration) {
	runtime = Runtime(runtime)
	creates.WithLabelValues(runtime, source, "ok").Inc()
	createSeconds.WithLabelValues(runtime, source).Observe(took.Seconds())
}

// CreateFailed counts one that did not. source is "" where it never came to a shim.
func CreateFailed(runtime, source, reason string) {
	if source == "" {
		source = Unknown
	}
	runtime = Runtime(runtime)
	creates.WithLabelValues(runtime, source, "failed").Inc()
	createFailures.WithLabelValues(runtime, reason).Inc()
}

// The phases of a create.
const (
	PhaseResolve = "resolve"
	PhaseQueue   = "queue"
	PhaseBundle  = "bundle"
	PhaseLaunch  = "launch"
	PhaseAdopt   = "adopt"
	PhaseDial    = "dial"
	PhaseMounts  = "mounts"
	PhaseCreate  = "create_rpc"
)

var phases = phasesOnce()

func phasesOnce() func() map[string]prometheus.Observer {
	return sync.OnceValue(func() map[string]prometheus.Observer {
		m := make(map[string]prometheus.Observer)
		for _, p := range phaseNames {
			m[p] = phaseSeconds.WithLabelValues(p)
		}
		return m
	})
}

// Phase notes how long a phase of a create took, from begin to now.
func Phase(phase string, begin time.Time) { phases()[phase].Observe(time.Since(begin).Seconds()) }

// Deleted counts a delete of a task.
func Deleted(runtime string, took time.Duration) {
	deleteSeconds.WithLabelValues(Runtime(runtime)).Observe(took.Seconds())
}

// Exec counts an execution of a shim's binary with a command: "start", "delete" or "info".
func Exec(command string) { shimExecs.WithLabelValues(command).Inc() }

// BreakerTo counts a shim process that became "unresponsive" or "connected".
func BreakerTo(runtime, state string) { breakers.WithLabelValues(Runtime(runtime), state).Inc() }

// Reconnected counts what became of a lost connection: "connected" or "dead".
func Reconnected(result string) { reconnects.WithLabelValues(result).Inc() }

// Died counts a shim process that is proven dead by "pid", or by its "address".
func Died(runtime, proof string) { deaths.WithLabelValues(Runtime(runtime), proof).Inc() }

// ExitTold counts an exit event that was published for a "dead_shim", as a "replay" for one that lives, or as a
// "repeat" for clients that come back late to a new daemon.
func ExitTold(by string) { exitsTold.WithLabelValues(by).Inc() }

// RestoreStage notes when a stage of the restore was reached: "listed", "read" or "settled".
func RestoreStage(stage string, after time.Duration) {
	restores.WithLabelValues(stage).Set(after.Seconds())
}

// Restored counts an instance found at the start: "running", "undone", "dead" or "left_alone".
func Restored(outcome string) { restored.WithLabelValues(outcome).Inc() }

// WarmRequest counts a create that a warm shim served ("hit"), could have served ("miss"), or could not ("ineligible").
func WarmRequest(runtime, result string) { warmAsked.WithLabelValues(Runtime(runtime), result).Inc() }

// WarmEnded counts warm shims that were ended: "idle", "worn", "distrusted", "ceiling", "memory", "died" or "stop".
func WarmEnded(reason string) { warmEnded.WithLabelValues(reason).Inc() }

// Cleanup counts an attempt to remove what is left of an instance.
func Cleanup(ok bool) {
	result := "ok"
	if !ok {
		result = "failed"
	}
	cleanupRuns.WithLabelValues(result).Inc()
}

// bundleError marks why a bundle could not be made. That is a part of the launch: the shim decides whose directory it
// is.
type bundleError struct{ error }

func (e bundleError) Unwrap() error { return e.error }

// MakingBundle measures what makes a bundle and marks its error, see IsOfBundle.
func MakingBundle(f func() error) error {
	begin := time.Now()
	if err := f(); err != nil {
		return bundleError{err}
	}
	Phase(PhaseBundle, begin)
	return nil
}

// IsOfBundle tells whether an error is that of a bundle that could not be made.
func IsOfBundle(err error) bool { return errors.As(err, new(bundleError)) }
