// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/pkg/tracing"
	"go.opentelemetry.io/otel/trace"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient"
)

// restoreSpanTime is after how long the span of a restore ends that has not settled: a span which has not ended is seen
// nowhere, and a silent shim may hold a restore up for ever.
const restoreSpanTime = time.Minute

// endRestoreSpan ends the span of a restore once it is settled, with what has become of the instances.
func (m *ShimManager) endRestoreSpan(span *tracing.Span) {
	ctx, cancel := context.WithTimeout(m.ctx, restoreSpanTime)
	defer cancel()
	if m.tally.undecided.Load() > 0 {
		select {
		case <-m.tally.settled:
		case <-ctx.Done():
		}
	}
	for n, name := range outcomes {
		span.SetAttributes(tracing.Attribute(name, int(m.tally.by[n].Load())))
	}
	span.SetAttributes(tracing.Attribute("unsettled", int(m.tally.undecided.Load())))
	span.End()
}

// startSpan begins a span about the instance. end ends it with how it went. What a client has put into a spec, its
// environment or options is never part of a span.
func (i *Instance) startSpan(ctx context.Context, name string) (_ context.Context, end func(error)) {
	id := "task.id"
	if i.kind == life.Sandbox {
		id = "sandbox.id"
	}
	ctx, span := tracing.StartSpan(ctx, name,
		tracing.WithAttribute("namespace", i.namespace), tracing.WithAttribute(id, i.id))
	i.nameSandbox(ctx, span) // now, while a delete has left the bundle there
	return ctx, func(err error) {
		i.nameSandbox(ctx, span)
		i.describeSpan(span)
		span.SetStatus(err)
		span.End()
	}
}

// nameSandbox adds the sandbox whose shim serves the task, once that is on record.
func (i *Instance) nameSandbox(ctx context.Context, span *tracing.Span) {
	d := i.home()
	if d == nil || i.kind == life.Sandbox || !trace.SpanFromContext(ctx).IsRecording() {
		return
	}
	if id, err := d.Sandbox(); err == nil && id != "" {
		span.SetAttributes(tracing.Attribute("sandbox.id", id))
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
