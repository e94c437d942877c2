// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/pkg/errors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// ErrConnectionLost is returned when the connection was closed or broke
	// before the shim answered: whether the shim did what it was asked is not
	// known. Its class is Unavailable. It says nothing about the shim process.
	ErrConnectionLost = errors.WithMessage(errdefs.ErrUnavailable, "connection to the shim lost")

	// ErrNoAnswer is returned when the method's own deadline (see Deadlines)
	// passed, as opposed to the caller's. Its class is DeadlineExceeded.
	ErrNoAnswer = errors.WithMessage(context.DeadlineExceeded, "shim did not answer in time")
)

// classed gives err a class (an errdefs class or one of the sentinels above)
// and keeps what err wraps.
type classed struct{ class, err error }

func (c *classed) Error() string { return fmt.Sprintf("%v: %v", c.err, c.class) }

// Unwrap lists the class first: errdefs.Resolve takes the first that it finds.
func (c *classed) Unwrap() []error { return []error{c.class, c.err} }

// failedCall is all that decides what a call's error means.
type failedCall struct {
	service, method string
	// lost says why the connection is gone; nil while it is not.
	lost error
	// passed is what ended the call's context or is about to: ErrNoAnswer for
	// the method's own deadline, otherwise the caller's context error; nil
	// while neither is near.
	passed error
}

// classify turns the error of a call into what callers of this package see.
// What the shim itself said keeps its text, and its class unless that class
// misleads (see unsupported).
func (f failedCall) classify(err error) error {
	if err == nil {
		return nil
	}
	st, answered := status.FromError(err)
	if !answered {
		return f.classifyLocal(err)
	}
	switch st.Code() {
	case codes.DeadlineExceeded, codes.Canceled:
		// The shim knows the deadline and may report it just before our own
		// timer does. gRPC reports its own closing as Canceled.
		if f.passed != nil {
			return errors.Wrapf(f.passed, "calling %s", f.method)
		}
		if f.lost != nil {
			return f.lostError(err)
		}
	case codes.Unavailable:
		if f.lost != nil {
			return f.lostError(err)
		}
	}
	if f.unsupported(st.Code(), st.Message()) {
		return errdefs.ErrNotImplemented.WithMessage(st.Message())
	}
	return errgrpc.ToNative(err)
}

// classifyLocal classifies an error that did not come from the shim, but from
// this side of the connection.
func (f failedCall) classifyLocal(err error) error {
	for _, ended := range []error{context.DeadlineExceeded, context.Canceled} {
		if !errors.Is(err, ended) {
			continue
		}
		if f.passed != nil {
			ended = f.passed
		}
		return errors.Wrapf(ended, "calling %s", f.method)
	}
	if f.lost != nil || isClosed(err) {
		return f.lostError(err)
	}
	return errgrpc.ToNative(err)
}

// lostError names the reason why the connection went where it is known: what
// the call itself saw is often a mere "closed".
func (f failedCall) lostError(err error) error {
	if f.lost != nil {
		err = f.lost
	}
	return errors.Wrapf(&classed{ErrConnectionLost, err}, "calling %s", f.method)
}

// unsupported reports whether the shim says that it lacks the service or the
// method. Not every server has a status code for that:
//   - Rust's ttrpc answers NOT_FOUND for a method that the service does not
//     implement and INVALID_ARGUMENT for one that was never registered;
//   - Go's ttrpc before 1.1 answers NOT_FOUND.
//
// The texts are compared strictly: a caller that believes a NotFound takes the
// container for gone, one that believes NotImplemented gives up on the method.
func (f failedCall) unsupported(code codes.Code, text string) bool {
	switch code {
	case codes.Unimplemented:
		return true
	case codes.NotFound:
		return text == "service "+f.service || text == "method "+f.method ||
			strings.HasSuffix(text, "/"+f.method+" is not supported")
	case codes.InvalidArgument:
		return text == f.service+" service does not exist" ||
			text == "/"+f.service+"/"+f.method+" does not exist"
	}
	return false
}

// isClosed reports whether err says that a connection ended.
func isClosed(err error) bool {
	for _, closed := range []error{
		ttrpc.ErrClosed, ttrpc.ErrServerClosed, ttrpc.ErrStreamClosed,
		io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed,
		syscall.ECONNRESET, syscall.EPIPE,
	} {
		if errors.Is(err, closed) {
			return true
		}
	}
	return false
}
