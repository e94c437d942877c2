// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestClassify(t *testing.T) {
	const service, method = "containerd.task.v2.Task", "Exec"
	lost := errors.New("the reason")
	for _, tc := range []struct {
		name   string
		err    error
		lost   error
		passed error
		want   error  // class
		is     error  // sentinel
		text   string // passes through unchanged
	}{
		{name: "Go: no such container", err: status.Error(codes.NotFound, "container x not found"),
			want: errdefs.ErrNotFound, text: "container x not found"},
		{name: "Go: no process", err: status.Error(codes.NotFound, "no running process found"),
			want: errdefs.ErrNotFound, text: "no running process found"},
		{name: "Go: finished", err: status.Error(codes.NotFound, "process already finished: not found"),
			want: errdefs.ErrNotFound, text: "process already finished: not found"},
		{name: "Go: task named like a method",
			err: status.Error(codes.NotFound, "task Exec is not supported: not found"), want: errdefs.ErrNotFound,
			text: "task Exec is not supported: not found"},
		{name: "Go: exec exists", err: status.Error(codes.AlreadyExists, "id e: already exists"),
			want: errdefs.ErrAlreadyExists, text: "id e: already exists"},
		{name: "Go: not running", err: status.Error(codes.FailedPrecondition, "cannot kill: failed precondition"),
			want: errdefs.ErrFailedPrecondition, text: "cannot kill: failed precondition"},
		{name: "Go: unknown", err: status.Error(codes.Unknown, "runc did not terminate"), want: errdefs.ErrUnknown,
			text: "runc did not terminate"},
		{name: "Go: internal", err: status.Error(codes.Internal, "boom"), want: errdefs.ErrInternal, text: "boom"},
		{name: "Go: argument", err: status.Error(codes.InvalidArgument, "no such signal"),
			want: errdefs.ErrInvalidArgument, text: "no such signal"},
		{name: "Go: method", err: status.Error(codes.Unimplemented, "method Exec"), want: errdefs.ErrNotImplemented,
			text: "method Exec"},
		{name: "Go: service", err: status.Error(codes.Unimplemented, "service "+service),
			want: errdefs.ErrNotImplemented, text: "service " + service},
		{name: "Go, old: method", err: status.Error(codes.NotFound, "method Exec"), want: errdefs.ErrNotImplemented,
			text: "method Exec"},
		{name: "Go, old: service", err: status.Error(codes.NotFound, "service "+service),
			want: errdefs.ErrNotImplemented, text: "service " + service},
		{name: "Go, old: another service", err: status.Error(codes.NotFound, "service web"), want: errdefs.ErrNotFound,
			text: "service web"},
		{name: "gRPC: method", err: status.Error(codes.Unimplemented, "unknown method Exec for service "+service),
			want: errdefs.ErrNotImplemented, text: "unknown method Exec for service " + service},
		{name: "Rust: not implemented", err: status.Error(codes.NotFound, "/"+service+"/Exec is not supported"),
			want: errdefs.ErrNotImplemented, text: "/" + service + "/Exec is not supported"},
		{name: "Rust: UNIMPLEMENTED", err: status.Error(codes.Unimplemented, "Exec method"),
			want: errdefs.ErrNotImplemented, text: "Exec method"},
		{name: "Rust: no method", err: status.Error(codes.InvalidArgument, "/"+service+"/Exec does not exist"),
			want: errdefs.ErrNotImplemented, text: "/" + service + "/Exec does not exist"},
		{name: "Rust: no service", err: status.Error(codes.InvalidArgument, service+" service does not exist"),
			want: errdefs.ErrNotImplemented, text: service + " service does not exist"},
		{name: "Rust: something else missing", err: status.Error(codes.InvalidArgument, "/dev/kvm does not exist"),
			want: errdefs.ErrInvalidArgument, text: "/dev/kvm does not exist"},

		{name: "too large to send", err: ttrpc.OversizedMessageError(5 << 20), want: errdefs.ErrResourceExhausted},
		{name: "too large to read", err: status.Error(codes.ResourceExhausted, "message length 5 exceed"),
			want: errdefs.ErrResourceExhausted, text: "message length 5 exceed"},
		{name: "nonsense on the wire", err: errors.New("proto: cannot parse"), want: errdefs.ErrUnknown,
			text: "proto: cannot parse"},
		{name: "nonsense, then lost", err: errors.New("proto: cannot parse"), lost: lost, want: errdefs.ErrUnavailable,
			is: ErrConnectionLost},

		{name: "ttrpc closed", err: ttrpc.ErrClosed, want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "ttrpc server closed", err: ttrpc.ErrServerClosed, want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "ttrpc stream closed", err: ttrpc.ErrStreamClosed, want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "EOF", err: errors.Wrap(io.EOF, "reading"), want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "EOF in a header", err: io.ErrUnexpectedEOF, want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "reset", err: &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)},
			want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "broken pipe", err: &net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)},
			want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "closed connection", err: &net.OpError{Op: "write", Err: net.ErrClosed}, want: errdefs.ErrUnavailable,
			is: ErrConnectionLost},
		{name: "write timeout", err: &net.OpError{Op: "write", Err: os.ErrDeadlineExceeded}, lost: lost,
			want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "gRPC lost", err: status.Error(codes.Unavailable, "error reading from server: EOF"), lost: lost,
			want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "gRPC closed by us", err: status.Error(codes.Canceled, "grpc: the client connection is closing"),
			lost: lost, want: errdefs.ErrUnavailable, is: ErrConnectionLost},
		{name: "the shim's own Unavailable", err: status.Error(codes.Unavailable, "agent is starting"),
			want: errdefs.ErrUnavailable, text: "agent is starting"},

		{name: "caller cancelled, ttrpc", err: context.Canceled, passed: context.Canceled, want: context.Canceled},
		{name: "caller cancelled, gRPC", err: status.FromContextError(context.Canceled).Err(), passed: context.Canceled,
			want: context.Canceled},
		{name: "caller's deadline, ttrpc", err: context.DeadlineExceeded, passed: context.DeadlineExceeded,
			want: context.DeadlineExceeded},
		{name: "caller's deadline, gRPC", err: status.FromContextError(context.DeadlineExceeded).Err(),
			passed: context.DeadlineExceeded, want: context.DeadlineExceeded},
		{name: "caller cancelled, seen as the deadline", err: context.DeadlineExceeded, passed: context.Canceled,
			want: context.Canceled},
		{name: "own deadline, ttrpc", err: context.DeadlineExceeded, passed: ErrNoAnswer,
			want: context.DeadlineExceeded, is: ErrNoAnswer},
		{name: "own deadline, gRPC", err: status.FromContextError(context.DeadlineExceeded).Err(), passed: ErrNoAnswer,
			want: context.DeadlineExceeded, is: ErrNoAnswer},
		{name: "own deadline, the shim was first", err: status.Error(codes.DeadlineExceeded, "timeout"),
			passed: ErrNoAnswer, want: context.DeadlineExceeded, is: ErrNoAnswer},
		{name: "own deadline, and lost", err: context.DeadlineExceeded, passed: ErrNoAnswer, lost: lost,
			want: context.DeadlineExceeded, is: ErrNoAnswer},
		{name: "the shim's own deadline", err: status.Error(codes.DeadlineExceeded, "agent: context deadline exceeded"),
			want: context.DeadlineExceeded, text: "agent: context deadline exceeded"},
		{name: "the shim's own cancel", err: status.Error(codes.Canceled, "stopping: context canceled"),
			want: context.Canceled, text: "stopping: context canceled"},
		{name: "an answer at the last moment", err: status.Error(codes.NotFound, "container x not found"),
			passed: ErrNoAnswer, lost: lost, want: errdefs.ErrNotFound, text: "container x not found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := failedCall{service: service, method: method, lost: tc.lost, passed: tc.passed}.classify(tc.err)
			require.Equal(t, tc.want, errdefs.Resolve(got), "%v", got)
			require.ErrorIs(t, got, tc.want)
			require.Equal(t, tc.is == ErrConnectionLost, errors.Is(got, ErrConnectionLost), "%v", got)
			require.Equal(t, tc.is == ErrNoAnswer, errors.Is(got, ErrNoAnswer), "%v", got)
			if tc.text != "" {
				// A plain error gets its class's name appended, as errgrpc does.
				require.Equal(t, tc.text, strings.TrimSuffix(got.Error(), ": "+errdefs.ErrUnknown.Error()))
			} else {
				require.True(t, tc.is == nil || strings.Contains(got.Error(), "calling Exec: "), "%v", got)
			}
			if tc.lost != nil && tc.is == ErrConnectionLost {
				require.ErrorIs(t, got, lost)
			}
			// The class survives the daemon's own API.
			require.Equal(t, tc.want, errdefs.Resolve(errgrpc.ToNative(errgrpc.ToGRPC(got))))
		})
	}
	require.NoError(t, failedCall{}.classify(nil))
}
