// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/metrics"
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
	i := newInstance(m, bundle.Layout{}, KindTask, testNamespace, "c", launching)
	i.binary.Path = "/bin/shim"
	b.ReportAllocs()
	for b.Loop() {
		_, w := watchCreate(context.Background(), i)
		w.enter(metrics.PhaseQueue)
		ctx := w.enter(metrics.PhaseLaunch)
		besideStep(ctx, spanCreate+"."+metrics.PhaseDial)(nil)
		metrics.Phase(metrics.PhaseDial, time.Now())
		if err := makingBundle(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
		metrics.WarmRequest(RuncV2, "miss")
		metrics.Exec("start")
		w.launchedBy(i)
		w.enter(metrics.PhaseMounts)
		w.enter(metrics.PhaseCreate)
		for _, method := range []string{"Connect", "Create", "Start", "State", "Delete"} {
			metrics.RPC(method, "OK", time.Millisecond)
		}
		w.done(i, RuncV2, nil)
		ctx, end := i.startSpan(context.Background(), spanDelete)
		_, cleaned := childSpan(ctx, spanDelete+".cleanup")
		cleaned(errors.New("once more"))
		end(nil)
		metrics.Deleted(RuncV2, time.Millisecond)
		metrics.Cleanup(true)
	}
}
