// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/pkg/tracing"
	"github.com/containerd/log"
	"go.opentelemetry.io/otel/trace"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// reportCleaned says that what could not be removed is removed. A clean-up that went well from the start is no news.
func (i *Instance) reportCleaned(ctx context.Context) {
	if since, failed := i.remains.Failed(); failed > 0 {
		i.logger(ctx).WithFields(log.Fields{"after": time.Since(since).Round(time.Millisecond), "attempts": failed + 1}).
			Infof("cleaned up after %s, which had failed before", i.kind)
	}
}

// labelRuntime lets the runtime of an instance that was found have its name in the metrics, if that had resolved when it
// was created: one that has joined another's shim may have come with any name.
func labelRuntime(rec *bundle.Record) {
	if rec.Launch != nil || rec.Warm != "" {
		metrics.Resolved(rec.Runtime)
	}
}

// reportRestored says, once and for all instances, what a restore has come to. One whose shim is silent holds it up: it
// has a line of its own.
func (m *ShimManager) reportRestored() {
	fields := log.Fields{"duration": time.Since(m.desk.Started()).Round(time.Millisecond)}
	by, _ := m.tally.Counts()
	for outcome, n := range by {
		fields[outcome] = n
	}
	log.G(m.ctx).WithFields(fields).Info("all that an earlier daemon left is settled")
}

// restoreSpanTime is after how long the span of a restore ends that has not settled: a span which has not ended is seen
// nowhere, and a silent shim may hold a restore up for ever.
const restoreSpanTime = time.Minute

// endRestoreSpan ends the span of a restore once it is settled, with what has become of the instances.
func (m *ShimManager) endRestoreSpan(span *tracing.Span) {
	ctx, cancel := context.WithTimeout(m.ctx, restoreSpanTime)
	defer cancel()
	if _, undecided := m.tally.Counts(); undecided > 0 {
		select {
		case <-m.tally.Settled():
		case <-ctx.Done():
		}
	}
	by, undecided := m.tally.Counts()
	for outcome, n := range by {
		span.SetAttributes(tracing.Attribute(outcome, n))
	}
	span.SetAttributes(tracing.Attribute("unsettled", undecided))
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
