// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func TestDefaultDeadlines(t *testing.T) {
	for method, limit := range DefaultDeadlines() {
		require.Positive(t, limit, method)
		name := protoreflect.Name(method)
		require.True(t, taskMethods().ByName(name) != nil || sandboxMethods().ByName(name) != nil, method)
	}
	for _, method := range []string{"Create", "Start", "Exec", "Checkpoint", "Pause", "Resume", "Update", "Wait",
		"Shutdown",
		"CreateSandbox", "StartSandbox", "UpdateSandbox", "WaitSandbox"} {
		require.NotContains(t, DefaultDeadlines(), method)
	}
	DefaultDeadlines()["State"] = 0
	require.Equal(t, 2*time.Second, DefaultDeadlines()["State"])
	require.NoError(t, DefaultDeadlines().Check())
}

// sandboxMethods lists the methods of the Sandbox service.
func sandboxMethods() protoreflect.MethodDescriptors {
	return sandboxapi.File_runtime_sandbox_v1_sandbox_proto.Services().ByName("Sandbox").Methods()
}

// What the daemon calls by itself must end.
func TestCheckOfDeadlines(t *testing.T) {
	for _, method := range OwnCalls {
		d := DefaultDeadlines().With(Deadlines{method: 0})
		require.True(t, errdefs.IsInvalidArgument(d.Check()), method)
		require.ErrorContains(t, d.Check(), method)
	}
	require.NoError(t, DefaultDeadlines().With(Deadlines{"Kill": 0}).Check())
}

// A sandbox that is given time to stop gets it before the deadline begins.
func TestDeadlineOfStopSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, cancel := Deadlines{"StopSandbox": 30 * time.Second}.bound(t.Context(), "StopSandbox", time.Minute)
		defer cancel()
		at, ok := b.Deadline()
		require.True(t, ok)
		require.Equal(t, 90*time.Second, time.Until(at))
		b, cancel = Deadlines{}.bound(t.Context(), "StopSandbox", time.Minute)
		defer cancel()
		_, ok = b.Deadline()
		require.False(t, ok, "none is none")
	})
}

// pipeTask returns a client of the v3 API whose peer, over an in-memory
// connection, is a server or whoever else uses the returned end.
func pipeTask(t *testing.T, d Deadlines) (net.Conn, *Conn, *Task) {
	near, far := net.Pipe()
	conn := NewConn(near, Endpoint{Protocol: protocolTTRPC, Address: "pipe", Version: 3}, d)
	task, err := conn.Task(3)
	require.NoError(t, err)
	return far, conn, task
}

// onePipe is a listener that accepts one connection.
type onePipe struct {
	conns chan net.Conn
	once  chan struct{}
}

func newOnePipe(conn net.Conn) onePipe {
	l := onePipe{make(chan net.Conn, 1), make(chan struct{})}
	l.conns <- conn
	return l
}

func (l onePipe) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.once:
		return nil, net.ErrClosed
	}
}

func (l onePipe) Close() error {
	select {
	case <-l.once:
	default:
		close(l.once)
	}
	return nil
}

func (l onePipe) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// servePipe serves the Task API over ttrpc on conn.
func servePipe(t *testing.T, conn net.Conn, answer answerFunc) {
	srv, err := ttrpc.NewServer()
	require.NoError(t, err)
	srv.RegisterService(taskServices[3], ttrpcService(answer))
	go func() { _ = srv.Serve(context.Background(), newOnePipe(conn)) }()
	t.Cleanup(func() { _ = srv.Close() })
}

func TestDeadlines(t *testing.T) {
	silent := func(ctx context.Context, _ string, _ proto.Message) (proto.Message, error) {
		// Longer than the shim's own idea of the deadline.
		time.Sleep(time.Hour)
		return nil, nil
	}
	for _, tc := range []struct {
		name     string
		limit    time.Duration
		caller   time.Duration // 0: none
		cancel   time.Duration // 0: never
		answer   answerFunc
		want     error
		noAnswer bool
		after    time.Duration
	}{
		{name: "the method's", limit: 2 * time.Second, answer: silent, want: context.DeadlineExceeded, noAnswer: true,
			after: 2 * time.Second},
		{name: "the method's before the caller's", limit: 2 * time.Second, caller: 3 * time.Second, answer: silent,
			want: context.DeadlineExceeded, noAnswer: true, after: 2 * time.Second},
		{name: "the caller's before the method's", limit: 2 * time.Second, caller: time.Second, answer: silent,
			want: context.DeadlineExceeded, after: time.Second},
		{name: "the caller's alone", caller: time.Second, answer: silent, want: context.DeadlineExceeded,
			after: time.Second},
		{name: "cancelled", limit: 2 * time.Second, caller: 3 * time.Second, cancel: time.Second, answer: silent,
			want: context.Canceled, after: time.Second},
		{name: "the shim gives up just before", limit: 2 * time.Second,
			answer: answerAfter(2*time.Second-answerSlack/2, codes.DeadlineExceeded),
			want:   context.DeadlineExceeded, noAnswer: true, after: 2*time.Second - answerSlack/2},
		{name: "the shim gives up just before the caller's", limit: 2 * time.Second, caller: time.Second,
			answer: answerAfter(time.Second-answerSlack/2, codes.DeadlineExceeded),
			want:   context.DeadlineExceeded, after: time.Second - answerSlack/2},
		{name: "the shim gave up for itself", limit: 2 * time.Second,
			answer: answerAfter(time.Second, codes.DeadlineExceeded),
			want:   context.DeadlineExceeded, after: time.Second},
		{name: "answered in time", limit: 2 * time.Second, answer: answerAfter(time.Second, codes.NotFound),
			want: errdefs.ErrNotFound, after: time.Second},
		{name: "cancelled before", limit: 2 * time.Second, cancel: -1, answer: silent, want: context.Canceled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer time.Sleep(2 * time.Hour) // for the server's handlers to end
				far, conn, task := pipeTask(t, Deadlines{"State": tc.limit})
				servePipe(t, far, tc.answer)
				defer conn.Close()

				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				if tc.caller > 0 {
					ctx, cancel = context.WithTimeout(ctx, tc.caller)
					defer cancel()
				}
				switch {
				case tc.cancel > 0:
					time.AfterFunc(tc.cancel, cancel)
				case tc.cancel < 0:
					cancel()
				}
				begin := time.Now()
				_, err := task.State(ctx, &api.StateRequest{ID: "c"})
				require.Equal(t, tc.after, time.Since(begin))
				require.Equal(t, tc.want, errdefs.Resolve(err), "%v", err)
				require.Equal(t, tc.noAnswer, errors.Is(err, ErrNoAnswer), "%v", err)
				select {
				case <-conn.Done():
					t.Error("a passed deadline is not a lost connection")
				default:
				}
			})
		})
	}
}

// answerAfter answers with a status after a while.
func answerAfter(d time.Duration, code codes.Code) answerFunc {
	return func(context.Context, string, proto.Message) (proto.Message, error) {
		time.Sleep(d)
		return nil, status.Error(code, "said the shim")
	}
}

// The map is the caller's own.
func TestDeadlinesAreCopied(t *testing.T) {
	d := Deadlines{"State": time.Minute}
	_, conn, _ := pipeTask(t, d)
	defer conn.Close()
	d["State"] = 0
	require.Equal(t, time.Minute, conn.deadlines["State"])
}
