// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"maps"
	"math"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/proto"
)

// isNoWait leaves Waits without a span: one lasts as long as its container.
func isNoWait(call *stats.RPCTagInfo) bool { return !strings.Contains(call.FullMethodName, "/Wait") }

// errRedial is why a gRPC connection is lost whose server said goodbye (GOAWAY)
// and still answers what it has begun.
var errRedial = errors.New("the shim takes no more calls on this connection")

// grpcCaller calls over gRPC. The namespace travels in the outgoing metadata of
// the context, where containerd's namespaces.WithNamespace puts it.
type grpcCaller struct{ client grpc.ClientConnInterface }

func (c grpcCaller) call(ctx context.Context, service, method string, req, resp proto.Message) error {
	return c.client.Invoke(ctx, "/"+service+"/"+method, req, resp)
}

// newGRPCConn speaks gRPC on an established connection, which it owns.
func newGRPCConn(ctx context.Context, conn net.Conn, e Endpoint, deadlines Deadlines) (*Conn, error) {
	w := newWire(conn)
	client, err := newGRPCClient(w)
	if err != nil {
		_ = w.Close()
		return nil, errors.Wrapf(err, "making gRPC client for shim at %q", e)
	}
	c := &Conn{
		endpoint: e, deadlines: maps.Clone(deadlines), wire: w, listener: listenerPid(conn),
		caller: grpcCaller{client}, raw: client,
		closeRaw: func() { _ = client.Close() },
	}
	if err := awaitReady(ctx, client, w); err != nil {
		_ = c.Close()
		return nil, errors.Wrapf(err, "connecting to shim at %q: no gRPC there", e)
	}
	return c, nil
}

// newGRPCClient returns a client that uses the given connection and no other:
// whether to connect again is not the library's decision.
func newGRPCClient(w *wire) (*grpc.ClientConn, error) {
	var used atomic.Bool
	dial := func(context.Context, string) (net.Conn, error) {
		if used.Swap(true) {
			_ = w.close(errRedial)
			return nil, w.lost()
		}
		return w, nil
	}
	return grpc.NewClient("passthrough:///shim",
		grpc.WithContextDialer(dial),
		// What grpc sends for unix sockets; some servers parse it.
		grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithFilter(isNoWait))),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		// The caller's context alone bounds the handshake.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig,
			MinConnectTimeout: time.Duration(math.MaxInt64 / 2)}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize),
		),
	)
}

// awaitReady returns when the HTTP/2 handshake is done.
func awaitReady(ctx context.Context, client *grpc.ClientConn, w *wire) error {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.ctx, cancel)()

	client.Connect()
	for {
		state := client.GetState()
		if state == connectivity.Ready && w.lost() == nil {
			return nil
		}
		if w.lost() == nil && client.WaitForStateChange(wait, state) {
			continue
		}
		if err := w.lost(); err != nil {
			return &classed{errdefs.ErrUnavailable, err}
		}
		return ctx.Err()
	}
}
