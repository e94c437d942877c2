// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"maps"
	"net"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
)

// caller makes one call to one service, over ttrpc or gRPC. Its errors are
// those of the library.
type caller interface {
	call(ctx context.Context, service, method string, req, resp proto.Message) error
}

// Conn is the one connection to a shim process, however many tasks it serves.
// It never connects again by itself: once lost it stays lost, and every call on
// it fails with ErrConnectionLost. It is safe for concurrent use.
type Conn struct {
	endpoint  Endpoint
	deadlines Deadlines
	wire      *wire
	listener  int
	caller    caller
	observe   func(method string, err error, took time.Duration)
	raw       any
	closeRaw  func()
}

// Dial connects to a shim. It returns when the connection stands (over gRPC:
// when the peer has spoken HTTP/2) or ctx ends. The error is of class
// Unavailable, NotImplemented where the platform lacks the transport,
// InvalidArgument for an endpoint that is none, or of ctx's.
//
// The calls on the connection are bounded by deadlines; nil bounds none.
func Dial(ctx context.Context, e Endpoint, deadlines Deadlines) (*Conn, error) {
	if _, err := newEndpoint(e.Protocol, e.Address, int64(e.Version)); err != nil {
		return nil, err
	}
	conn, err := e.dial(ctx)
	if err != nil {
		return nil, err
	}
	if e.Protocol == protocolTTRPC {
		return NewConn(conn, e, deadlines), nil
	}
	return newGRPCConn(ctx, conn, e, deadlines)
}

// NewConn speaks ttrpc on an existing connection, which it owns from now on.
func NewConn(conn net.Conn, e Endpoint, deadlines Deadlines) *Conn {
	c := &Conn{endpoint: e, deadlines: maps.Clone(deadlines), wire: newWire(conn), listener: listenerPid(conn)}
	client := newTTRPCClient(c.wire)
	c.caller, c.raw = ttrpcCaller{client}, client
	c.closeRaw = func() { _ = client.Close() }
	return c
}

// Listener is the pid of the process that made the socket listen, which may be a helper of the shim's that is gone; 0
// when it is not known. It does not say who answers. But two connections with the same listener lead to the same
// socket, which no other process can have taken meanwhile.
func (c *Conn) Listener() int { return c.listener }

func listenerPid(conn net.Conn) int {
	l, err := listenerOf(conn)
	if err != nil || l == nil {
		return 0
	}
	return l.pid
}

// Done is closed when the connection is lost or closed. Calls in flight then
// fail, if their answers have not come yet. A call may see the loss first, up
// to a second: after a failed write what the shim said before is still read.
func (c *Conn) Done() <-chan struct{} { return c.wire.ctx.Done() }

// Close closes the connection, and may be called at any time and repeatedly.
// Calls in flight fail with ErrConnectionLost.
func (c *Conn) Close() error {
	// The wire first: gRPC would wait for a stalled peer to take its farewell.
	_ = c.wire.close(errClosedHere)
	c.closeRaw()
	return nil
}

// Endpoint returns what the connection leads to.
func (c *Conn) Endpoint() Endpoint { return c.endpoint }

// Raw returns the library's client, a *ttrpc.Client or a
// grpc.ClientConnInterface, for services other than Task. Deadlines and
// the classification of errors do not apply to its calls.
func (c *Conn) Raw() any { return c.raw }

// Task returns a client of the given version of the Task API, 2 or 3. A version
// that we do not speak is NotImplemented.
func (c *Conn) Task(version int) (*Task, error) {
	if version < minVersion || version > maxVersion {
		return nil, errors.Wrapf(errdefs.ErrNotImplemented,
			"cannot call shim at %q: version %d of the task API, want %d to %d",
			c.endpoint, version, minVersion, maxVersion)
	}
	return &Task{conn: c, version: version, service: taskServices[version]}, nil
}

// Observe has f told of every call that has ended, with its classified error. It is for counting, must return at once,
// and is to be set before the first call.
func (c *Conn) Observe(f func(method string, err error, took time.Duration)) { c.observe = f }

// call makes a call within the method's deadline and classifies its error.
func (c *Conn) call(ctx context.Context, service, method string, req, resp proto.Message) error {
	return c.callFor(ctx, 0, service, method, req, resp)
}

// callFor is call for a request that asks the shim to take its time.
func (c *Conn) callFor(ctx context.Context, grace time.Duration, service, method string, req,
	resp proto.Message) error {
	begin := time.Now()
	err := c.send(ctx, grace, service, method, req, resp)
	if c.observe != nil {
		c.observe(method, err, time.Since(begin))
	}
	return err
}

func (c *Conn) send(ctx context.Context, grace time.Duration, service, method string, req, resp proto.Message) error {
	b, cancel := c.deadlines.bound(ctx, method, grace)
	defer cancel()

	err := b.Err()
	if err == nil {
		err = c.wire.lost()
	}
	if err == nil {
		err = c.caller.call(b, service, method, req, resp)
	}
	if err == nil {
		return nil
	}
	return failedCall{service: service, method: method, lost: c.wire.lost(), passed: b.passed()}.classify(err)
}
