// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/plugins"
	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/spans"
)

// All that a create and a delete do to be seen, and nothing else: without traces, and with every span recorded. A
// create of a container takes milliseconds (make bench); this is to be less than a hundredth of that.
func BenchmarkInstrumentation(b *testing.B) {
	b.Run("no traces", benchInstrumentation)
	b.Run("traces", func(b *testing.B) {
		before := otel.GetTracerProvider()
		defer otel.SetTracerProvider(before)
		spans := sdktrace.NewBatchSpanProcessor(tracetest.NewNoopExporter())
		otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)))
		benchInstrumentation(b)
	})
}

func benchInstrumentation(b *testing.B) {
	m := memManager(b)
	i := newInstance(m, bundle.Layout{}, life.Task, testNamespace, "c", life.Launching)
	i.binary.Path = "/bin/shim"
	b.ReportAllocs()
	for b.Loop() {
		_, w := watchCreate(context.Background(), i)
		w.enter(metrics.PhaseQueue)
		ctx := w.enter(metrics.PhaseLaunch)
		spans.Beside(ctx, spans.Create+"."+metrics.PhaseDial)(nil)
		metrics.Phase(metrics.PhaseDial, time.Now())
		if err := metrics.MakingBundle(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
		metrics.WarmRequest(plugins.RuntimeRuncV2, "miss")
		metrics.Exec("start")
		w.launchedBy(i)
		w.enter(metrics.PhaseMounts)
		w.enter(metrics.PhaseCreate)
		for _, method := range []string{"Connect", "Create", "Start", "State", "Delete"} {
			metrics.RPC(method, "OK", time.Millisecond)
		}
		w.done(i, plugins.RuntimeRuncV2, nil)
		ctx, end := i.startSpan(context.Background(), spans.Delete)
		_, cleaned := spans.Child(ctx, spans.Delete+".cleanup")
		cleaned(errors.New("once more"))
		end(nil)
		metrics.Deleted(plugins.RuntimeRuncV2, time.Millisecond)
		metrics.Cleanup(true)
	}
}
