// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"

	"github.com/containerd/containerd/v2/pkg/tracing"
	"go.opentelemetry.io/otel/trace"

	"github.com/shimyard/shimyard/shimclient"
)

// The names of spans, as containerd names its own.
const (
	spanCreate  = "runtime.task.Create"
	spanDelete  = "runtime.task.Delete"
	spanReap    = "runtime.shim.Reap"
	spanRestore = "runtime.shim.Restore"
	spanSandbox = "runtime.sandbox."
)

// startSpan begins a span about the instance. end ends it with how it went. What a client has put into a spec, its environment or options is
// never part of a span.
func (i *Instance) startSpan(ctx context.Context, name string) (_ context.Context, end func(error)) {
	id := "task.id"
	if i.kind == KindSandbox {
		id = "sandbox.id"
	}
	ctx, span := tracing.StartSpan(ctx, name, tracing.WithAttribute("namespace", i.namespace), tracing.WithAttribute(id, i.id))
	return ctx, func(err error) {
		i.describeSpan(span)
		span.SetStatus(err)
		span.End()
	}
}

// describeSpan adds what is known only at the end.
func (i *Instance) describeSpan(span *tracing.Span) {
	i.mu.Lock()
	way, p := i.ledger.passageLocked(), i.proc
	i.mu.Unlock()
	span.SetAttributes(tracing.Attribute("task.runtime.name", way.runtime))
	if source := way.source(); source != "" {
		span.SetAttributes(tracing.Attribute("shim.source", source))
	}
	if pid := i.ledger.pid(); pid != 0 {
		span.SetAttributes(tracing.Attribute("task.pid", int(pid)))
	}
	if p == nil {
		return
	}
	if pid := p.Verified(); pid != (shimclient.ProcessID{}) {
		span.SetAttributes(tracing.Attribute("shim.pid", pid.Pid))
	}
}

// childSpan begins a span for a step of what ctx's span is about. Work in the background that is tried until it succeeds has none.
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
