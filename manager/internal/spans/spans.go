// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package spans begins and names the spans of what the manager does, for tracing.
package spans

import (
	"context"

	"github.com/containerd/containerd/v2/pkg/tracing"
	"go.opentelemetry.io/otel/trace"
)

// The names of spans, as containerd names its own.
const (
	Create  = "runtime.task.Create"
	Delete  = "runtime.task.Delete"
	Reap    = "runtime.shim.Reap"
	Restore = "runtime.shim.Restore"
	Sandbox = "runtime.sandbox."
)

// Child begins a span for a step of what ctx's span is about. Work in the background that is tried until it
// succeeds has none.
func Child(ctx context.Context, name string) (_ context.Context, end func(error)) {
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

// WithCreate is ctx as a part of the create whose span it is in.
func WithCreate(ctx context.Context) context.Context {
	return context.WithValue(ctx, createKey{}, trace.SpanFromContext(ctx))
}

// Beside begins a span for a step of the create that ctx is a part of, in the course of another step.
func Beside(ctx context.Context, name string) (end func(error)) {
	if create, ok := ctx.Value(createKey{}).(trace.Span); ok {
		ctx = trace.ContextWithSpan(ctx, create)
	}
	_, end = Child(ctx, name)
	return end
}
