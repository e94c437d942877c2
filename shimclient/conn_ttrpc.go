// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"strings"

	"github.com/containerd/otelttrpc"
	"github.com/containerd/ttrpc"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
)

// ttrpcCaller calls over ttrpc. The namespace travels in the ttrpc metadata of
// the context, where containerd's namespaces.WithNamespace puts it, the
// context's deadline in the request.
type ttrpcCaller struct{ client *ttrpc.Client }

func newTTRPCClient(w *wire) *ttrpc.Client {
	a := newAnswers(w)
	return ttrpc.NewClient(a, ttrpc.WithChainUnaryClientInterceptor(traced(otelttrpc.UnaryClientInterceptor()),
		a.intercept))
}

// traced gives a call a span if it is a part of something that has one, and is no Wait, which lasts as long as its
// container. Probes and other calls in the background would each be a trace of their own.
func traced(with ttrpc.UnaryClientInterceptor) ttrpc.UnaryClientInterceptor {
	return func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo,
		invoke ttrpc.Invoker) error {
		if !isTraced(ctx, req.Method) {
			return invoke(ctx, req, resp)
		}
		return with(ctx, req, resp, info, invoke)
	}
}

func isTraced(ctx context.Context, method string) bool {
	return trace.SpanContextFromContext(ctx).IsValid() && !strings.HasPrefix(method, "Wait")
}

func (c ttrpcCaller) call(ctx context.Context, service, method string, req, resp proto.Message) error {
	return c.client.Call(ctx, service, method, req, resp)
}
