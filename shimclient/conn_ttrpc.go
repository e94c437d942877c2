// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"

	"github.com/containerd/otelttrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// ttrpcCaller calls over ttrpc. The namespace travels in the ttrpc metadata of
// the context, where containerd's namespaces.WithNamespace puts it, the
// context's deadline in the request.
type ttrpcCaller struct{ client *ttrpc.Client }

func newTTRPCClient(w *wire) *ttrpc.Client {
	return ttrpc.NewClient(w, ttrpc.WithUnaryClientInterceptor(otelttrpc.UnaryClientInterceptor()))
}

func (c ttrpcCaller) call(ctx context.Context, service, method string, req, resp proto.Message) error {
	return c.client.Call(ctx, service, method, req, resp)
}
