// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package otlp is a collector of traces inside a test: it takes what exporters send over OTLP's HTTP transport and
// keeps it.
package otlp

import (
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one that has come, with its ids in hexadecimal.
type Span struct {
	// Service is the exporter's service.name.
	Service             string
	Trace, ID, ParentID string
	Name                string
	// Kind is the side of a call that it is of, if it is of one.
	Kind tracepb.Span_SpanKind
	// Attributes as text, by key.
	Attributes map[string]string
	// Failure is the text of its status, which is that of an error.
	Failure string
	// Raw is all of it, as it came.
	Raw *tracepb.Span
}

// Collector of spans. Its methods are safe for concurrent use.
type Collector struct {
	server *httptest.Server
	mu     sync.Mutex
	spans  []Span
}

// Start listens until the test ends.
func Start(t testing.TB) *Collector {
	c := &Collector{}
	c.server = httptest.NewServer(c)
	t.Cleanup(c.server.Close)
	return c
}

// Env makes a program, and those that it starts, send each span soon.
func (c *Collector) Env() []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.server.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		"OTEL_BSP_SCHEDULE_DELAY=50"}
}

// ServeHTTP implements http.Handler.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var req collector.ExportTraceServiceRequest
	if err != nil || proto.Unmarshal(body, &req) != nil {
		http.Error(w, "not an export of traces", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		service := attributes(rs.GetResource().GetAttributes())["service.name"]
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans = append(c.spans, newSpan(service, s))
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func newSpan(service string, s *tracepb.Span) Span {
	return Span{
		Service: service, Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId),
		ParentID: hex.EncodeToString(s.ParentSpanId),
		Name:     s.Name, Kind: s.Kind, Attributes: attributes(s.Attributes), Failure: s.GetStatus().GetMessage(), Raw: s,
	}
}

func attributes(pairs []*commonpb.KeyValue) map[string]string {
	found := make(map[string]string)
	for _, p := range pairs {
		switch v := p.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			found[p.Key] = v.StringValue
		default:
			found[p.Key] = p.GetValue().String()
		}
	}
	return found
}

// Spans are those that have come so far, for which is is true.
func (c *Collector) Spans(is func(Span) bool) (found []Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if is(s) {
			found = append(found, s)
		}
	}
	return found
}

// Children are the spans right below one, in the order of their beginning.
func (c *Collector) Children(of Span) []Span {
	found := c.Spans(func(s Span) bool { return s.Trace == of.Trace && s.ParentID == of.ID })
	slices.SortFunc(found,
		func(a, b Span) int { return int(int64(a.Raw.StartTimeUnixNano) - int64(b.Raw.StartTimeUnixNano)) })
	return found
}
