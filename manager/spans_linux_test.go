// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/spans"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// recorded has every span that ends during the test.
func recorded(t *testing.T) *tracetest.SpanRecorder {
	t.Helper()
	r := tracetest.NewSpanRecorder()
	before := otel.GetTracerProvider()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r)))
	t.Cleanup(func() { otel.SetTracerProvider(before) })
	return r
}

func spansOf(r *tracetest.SpanRecorder, name string) (found []sdktrace.ReadOnlySpan) {
	for _, s := range r.Ended() {
		if s.Name() == name {
			found = append(found, s)
		}
	}
	return found
}

func attributesOf(s sdktrace.ReadOnlySpan) map[attribute.Key]string {
	m := make(map[attribute.Key]string)
	for _, a := range s.Attributes() {
		m[a.Key] = a.Value.String()
	}
	return m
}

// TestSpans: the spans of a create and of a delete with their steps below them, one for a restart, and none for a Wait.
func TestSpans(t *testing.T) {
	r := recorded(t)
	y := newYard(t, shimtest.Scenario{})
	task := y.run("c1", "sleep")
	exited := y.waiting(task)
	y.kill(task)
	require.NoError(t, (<-exited).err)
	y.remove("c1")

	create := spansOf(r, spans.Create)
	require.Len(t, create, 1)
	got := attributesOf(create[0])
	require.Equal(t, testNamespace, got["namespace"])
	require.Equal(t, "c1", got["task.id"])
	require.Equal(t, y.shim.Path, got["task.runtime.name"])
	require.Equal(t, "start", got["shim.source"])
	require.NotEmpty(t, got["shim.pid"])
	for _, step := range []string{"resolve", "launch", "dial", "mounts"} {
		steps := spansOf(r, spans.Create+"."+step)
		require.Len(t, steps, 1, step)
		require.Equal(t, create[0].SpanContext().SpanID(), steps[0].Parent().SpanID(), step)
	}
	deleted := spansOf(r, spans.Delete)
	require.Len(t, deleted, 1)
	require.Len(t, spansOf(r, spans.Delete+".cleanup"), 1)
	require.True(t, slices.ContainsFunc(r.Ended(), func(s sdktrace.ReadOnlySpan) bool {
		return strings.HasSuffix(s.Name(), "/Create") && s.Parent().TraceID() == create[0].SpanContext().TraceID()
	}), "the call to the shim is part of the create")
	for _, s := range r.Ended() {
		require.NotContains(t, s.Name(), "Wait")
		for _, a := range s.Attributes() {
			require.NotContains(t, a.Value.String(), "YARD=1", "no environment in a span")
		}
	}

	failed := y.opts("sleep")
	failed.Runtime = "io.containerd.no-such.v1"
	_, err := y.tasks.Create(y.ctx, "c2", failed)
	require.Error(t, err)
	create = spansOf(r, spans.Create)
	require.Len(t, create, 2)
	require.NotEmpty(t, create[1].Status().Description, "what failed is said")

	y.run("c3", "sleep")
	before := len(spansOf(r, spans.Restore))
	y.restart()
	y.inState("c3", life.Running)
	y.until("the restore has settled", func() bool { return len(spansOf(r, spans.Restore)) > before })
	require.Len(t, spansOf(r, spans.Restore), before+1)
	require.NoError(t, y.shim.Daemon("c3").Kill())
	y.until("the death is seen to", func() bool { return len(spansOf(r, spans.Reap)) == 1 })
	y.empty()
}
