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
	stepOf(t, r, deleted[0], "shim_delete")
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

// stepOf is the one step of a clean-up that a span has below it.
func stepOf(t *testing.T, r *tracetest.SpanRecorder, of sdktrace.ReadOnlySpan, step string) sdktrace.ReadOnlySpan {
	t.Helper()
	var found []sdktrace.ReadOnlySpan
	for _, s := range spansOf(r, spans.Delete+"."+step) {
		if s.Parent().SpanID() == of.SpanContext().SpanID() {
			found = append(found, s)
		}
	}
	require.Len(t, found, 1, "%s of %s", step, of.Name())
	return found[0]
}

// TestSpanOfShimDelete: what the shim's delete fails with is in its span, and the delete of the task goes on.
func TestSpanOfShimDelete(t *testing.T) {
	r := recorded(t)
	y := newYard(t, shimtest.Scenario{Delete: shimtest.DeleteFaults{Fail: -1, FailText: "out of order"}})
	y.kill(y.run("c1", "sleep"))
	y.remove("c1")
	deleted := spansOf(r, spans.Delete)
	require.Len(t, deleted, 1)
	require.Empty(t, deleted[0].Status().Description)
	require.Contains(t, stepOf(t, r, deleted[0], "shim_delete").Status().Description, "out of order")
	require.Empty(t, stepOf(t, r, deleted[0], "cleanup").Status().Description)
}

// TestSpanOfRestore ends when it is known of all instances what becomes of them, and says it.
func TestSpanOfRestore(t *testing.T) {
	r := recorded(t)
	y := newYard(t, shimtest.Scenario{})
	for _, id := range []string{"c1", "c2", "c3"} {
		y.run(id, "sleep")
	}
	y.hurry("c1", "c2", "c3")
	cont := y.silence("c3")
	before := len(spansOf(r, spans.Restore))
	y.restart(func() { require.NoError(t, y.shim.Daemon("c2").Kill()) })
	y.inState("c1", life.Running)
	y.until("the death is seen", func() bool { return y.instance("c2") == nil })
	require.Len(t, spansOf(r, spans.Restore), before, "one is not settled")
	cont()
	y.until("the restore has settled", func() bool { return len(spansOf(r, spans.Restore)) > before })
	got := attributesOf(spansOf(r, spans.Restore)[before])
	for name, want := range map[attribute.Key]string{"instances": "3", "running": "2", "dead": "1", "undone": "0",
		"left_alone": "0", "unsettled": "0"} {
		require.Equal(t, want, got[name], name)
	}

	cont = y.silence("c3")
	y.restart()
	y.inState("c1", life.Running)
	y.restart()
	y.until("the one that was cut short has ended", func() bool { return len(spansOf(r, spans.Restore)) > before+1 })
	require.Equal(t, "1", attributesOf(spansOf(r, spans.Restore)[before+1])["unsettled"])
	cont()
	y.inState("c3", life.Running)
	y.remove("c1")
	y.remove("c3")
}

// TestSpansNameTheSandbox that a task has joined, from its create to its delete.
func TestSpansNameTheSandbox(t *testing.T) {
	r := recorded(t)
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	y.box("s1")
	y.start("c1", y.inBox("s1"))
	y.run("c2", "sleep")
	y.remove("c1")
	y.remove("c2")
	require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
	for _, name := range []string{spans.Create, spans.Delete} {
		of := spansOf(r, name)
		require.Len(t, of, 2, name)
		require.Equal(t, "c1", attributesOf(of[0])["task.id"])
		require.Equal(t, "s1", attributesOf(of[0])["sandbox.id"], name)
		require.NotContains(t, attributesOf(of[1]), attribute.Key("sandbox.id"), name)
	}
	require.Equal(t, "s1", attributesOf(spansOf(r, spans.Sandbox+"Create")[0])["sandbox.id"])
}
