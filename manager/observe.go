// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"go.opentelemetry.io/otel/trace"

	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/spans"
	"github.com/shimyard/shimyard/shimclient"
)

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
	ctx, w.endSpan = i.startSpan(ctx, spans.Create)
	w.ctx = spans.WithCreate(ctx)
	return w.enter(metrics.PhaseResolve), w
}

// enter ends the present phase of the create and begins another, whose context it returns. "" is for none.
func (w *watched) enter(phase string) context.Context {
	w.leave(nil)
	w.phase, w.entered = phase, time.Now()
	if phase == "" || phase == metrics.PhaseCreate { // the call has a span of its own
		return w.ctx
	}
	ctx, end := spans.Child(w.ctx, spans.Create+"."+phase)
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
		w.phaseSpan.SetName(spans.Create + "." + metrics.PhaseAdopt)
	}
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
	case metrics.IsOfBundle(err):
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
