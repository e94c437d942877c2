// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/tracing"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/pkg/errors"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/status"

	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient"
)

// RegisterMetrics registers the metrics of this package with Prometheus. Those that are registered already stay.
func RegisterMetrics(r prometheus.Registerer, version, containerdVersion string) error {
	return metrics.Register(r, version, containerdVersion)
}

// watched is a create that is being measured. For one goroutine.
type watched struct {
	ctx            context.Context // of the span of the whole
	endSpan        func(error)
	begin, entered time.Time
	phase          string
	phaseSpan      trace.Span
	endPhase       func(error) // nil where the phase has no span
}

// watchCreate begins to measure a create, and its span. The context is for its first phase.
func watchCreate(ctx context.Context, i *Instance) (context.Context, *watched) {
	w := &watched{begin: time.Now()}
	ctx, w.endSpan = i.startSpan(ctx, spanCreate)
	w.ctx = withCreate(ctx)
	return w.enter(metrics.PhaseResolve), w
}

// enter ends the present phase of the create and begins another, whose context it returns. "" is for none.
func (w *watched) enter(phase string) context.Context {
	w.leave(nil)
	w.phase, w.entered = phase, time.Now()
	if phase == "" || phase == metrics.PhaseCreate { // the call has a span of its own
		return w.ctx
	}
	ctx, end := childSpan(w.ctx, spanCreate+"."+phase)
	w.endPhase, w.phaseSpan = end, trace.SpanFromContext(ctx)
	return ctx
}

// leave ends the present phase. Only one that went well counts.
func (w *watched) leave(err error) {
	if w.phase != "" && err == nil {
		metrics.Phase(w.phase, w.entered)
	}
	if w.endPhase != nil {
		w.endPhase(err)
		w.endPhase = nil
	}
}

// launchedBy tells the phase that is about to end by its right name: only now it is known whether a shim was started.
func (w *watched) launchedBy(i *Instance) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ledger.Passage().Source() != metrics.Start {
		w.phase = metrics.PhaseAdopt
		w.phaseSpan.SetName(spanCreate + "." + metrics.PhaseAdopt)
	}
}

// bundleError marks why a bundle could not be made. That is a part of the launch: the shim decides whose directory it
// is.
type bundleError struct{ error }

func (e bundleError) Unwrap() error { return e.error }

// makingBundle measures what makes a bundle and marks its error.
func makingBundle(f func() error) error {
	begin := time.Now()
	if err := f(); err != nil {
		return bundleError{err}
	}
	metrics.Phase(metrics.PhaseBundle, begin)
	return nil
}

// done counts the create of an instance. runtime is the name that its client gave: it counts as a name only once it has
// resolved.
func (w *watched) done(i *Instance, runtime string, err error) {
	i.mu.Lock()
	source, resolved := i.ledger.Passage().Source(), i.binary.Path != ""
	i.mu.Unlock()
	if !resolved {
		runtime = ""
	}
	w.leave(err)
	w.endSpan(err)
	if err != nil {
		metrics.CreateFailed(runtime, source, w.reason(err))
		return
	}
	metrics.Created(runtime, source, time.Since(w.begin))
}

// reason puts a failed create into one of the closed list of reasons, by its error and by the phase in which it came.
func (w *watched) reason(err error) string {
	switch {
	case errdefs.IsCanceled(err), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return metrics.ReasonCanceled
	case errdefs.IsAlreadyExists(err):
		return metrics.ReasonExists
	case errors.Is(err, shimclient.ErrConnectionLost), errors.Is(err, shimproc.ErrDead):
		return metrics.ReasonShimDied
	case errors.As(err, new(bundleError)):
		return metrics.ReasonBundle
	case w.phase == metrics.PhaseLaunch && errdefs.IsUnavailable(err):
		return metrics.ReasonConnect // it has started, or was there
	case w.phase == metrics.PhaseResolve && errdefs.IsInvalidArgument(err):
		return metrics.ReasonSpec
	}
	return reasonOfPhase[w.phase]
}

var reasonOfPhase = map[string]string{
	metrics.PhaseResolve: metrics.ReasonRuntime, metrics.PhaseLaunch: metrics.ReasonLaunch,
	metrics.PhaseMounts: metrics.ReasonMounts, metrics.PhaseCreate: metrics.ReasonShim,
}

// restoredAs is what became of an instance that was found at the start, by the state that it leaves restoring for.
var restoredAs = map[state]string{running: "running", reaping: "undone", dead: "dead", gone: "left_alone"}

// observeRestoredLocked counts an instance that was found at the start, once it is decided what becomes of it, and
// notes when that is so of all.
func (i *Instance) observeRestoredLocked(st state) {
	outcome, decided := restoredAs[st]
	if !i.found || !decided {
		return
	}
	i.found = false
	metrics.Restored(outcome)
	if i.m.undecided.Add(-1) == 0 {
		metrics.RestoreStage("settled", time.Since(i.m.desk.Started))
	}
}

// observeCall counts a call to a shim.
func observeCall(method string, err error, took time.Duration) {
	if strings.HasPrefix(method, "Wait") {
		return
	}
	if errors.Is(err, shimclient.ErrNoAnswer) {
		metrics.DeadlinePassed(method)
	}
	metrics.RPC(method, codeOf(err), took)
}

func codeOf(err error) string {
	if err == nil {
		return "OK"
	}
	return status.Code(errgrpc.ToGRPC(err)).String()
}

// Now counts what there is, for the metrics. It asks no shim and reads no file.
func (m *ShimManager) Now() metrics.Now {
	now := metrics.Now{
		Instances: make(map[metrics.Instances]int), Processes: make(map[metrics.Processes]int),
		WarmShims: m.pool.count(), LaunchQueue: m.launcher.Waiting(),
	}
	processes, runtimes := m.procs.All(), make(map[*shimproc.Process]string)
	for _, i := range m.everyInstance("") {
		v := i.brief()
		if v.State == "" {
			continue
		}
		runtimes[v.process] = v.Runtime
		now.Instances[v.Instances]++
		if v.failing {
			now.CleanupsPending++
			now.CleanupSince = earlier(now.CleanupSince, v.since)
		}
	}
	for _, p := range processes {
		st := p.Status()
		now.Processes[metrics.Processes{State: st.State.String(), Runtime: runtimes[p]}]++
		if st.State == shimproc.Unresponsive {
			now.UnresponsiveSince = earlier(now.UnresponsiveSince, st.Since)
		}
	}
	return now
}

// earlier of two times, of which the zero one is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// brief is what is counted of an instance.
type brief struct {
	metrics.Instances
	process *shimproc.Process
	failing bool      // it is being cleaned up, and that has failed
	since   time.Time // when its state began
}

func (i *Instance) brief() brief {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, left := i.remains.whatIsLeft()
	return brief{
		Instances: metrics.Instances{
			Kind: string(i.kind), State: stateNames[i.state], Runtime: i.ledger.Passage().Runtime,
			Namespace: i.namespace,
		},
		process: i.proc, failing: left != nil && i.state.ending(), since: i.since,
	}
}

// count is how many warm shims there are, by what they do.
func (o *pool) count() map[metrics.WarmShims]int {
	n := make(map[metrics.WarmShims]int)
	for _, w := range o.account.Waiting() {
		n[metrics.WarmShims{Runtime: w.spec.binary.Runtime, State: warm.Idle.String()}]++
	}
	return n
}

// The names of spans, as containerd names its own.
const (
	spanCreate  = "runtime.task.Create"
	spanDelete  = "runtime.task.Delete"
	spanReap    = "runtime.shim.Reap"
	spanRestore = "runtime.shim.Restore"
	spanSandbox = "runtime.sandbox."
)

// startSpan begins a span about the instance. end ends it with how it went. What a client has put into a spec, its
// environment or options is never part of a span.
func (i *Instance) startSpan(ctx context.Context, name string) (_ context.Context, end func(error)) {
	id := "task.id"
	if i.kind == KindSandbox {
		id = "sandbox.id"
	}
	ctx, span := tracing.StartSpan(ctx, name,
		tracing.WithAttribute("namespace", i.namespace), tracing.WithAttribute(id, i.id))
	return ctx, func(err error) {
		i.describeSpan(span)
		span.SetStatus(err)
		span.End()
	}
}

// describeSpan adds what is known only at the end.
func (i *Instance) describeSpan(span *tracing.Span) {
	i.mu.Lock()
	way, p := i.ledger.Passage(), i.proc
	i.mu.Unlock()
	span.SetAttributes(tracing.Attribute("task.runtime.name", way.Runtime))
	if source := way.Source(); source != "" {
		span.SetAttributes(tracing.Attribute("shim.source", source))
	}
	if pid := i.ledger.Pid(""); pid != 0 {
		span.SetAttributes(tracing.Attribute("task.pid", int(pid)))
	}
	if p == nil {
		return
	}
	if pid := p.Verified(); pid != (shimclient.ProcessID{}) {
		span.SetAttributes(tracing.Attribute("shim.pid", pid.Pid))
	}
}

// childSpan begins a span for a step of what ctx's span is about. Work in the background that is tried until it
// succeeds has none.
func childSpan(ctx context.Context, name string) (_ context.Context, end func(error)) {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, func(error) {}
	}
	ctx, span := tracing.StartSpan(ctx, name)
	return ctx, func(err error) {
		span.SetStatus(err)
		span.End()
	}
}

// createKey is where a context has the span of the create that it is a part of.
type createKey struct{}

// withCreate is ctx as a part of the create whose span it is in.
func withCreate(ctx context.Context) context.Context {
	return context.WithValue(ctx, createKey{}, trace.SpanFromContext(ctx))
}

// besideStep begins a span for a step of the create that ctx is a part of, in the course of another step.
func besideStep(ctx context.Context, name string) (end func(error)) {
	if create, ok := ctx.Value(createKey{}).(trace.Span); ok {
		ctx = trace.ContextWithSpan(ctx, create)
	}
	_, end = childSpan(ctx, name)
	return end
}
