// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/shimclient"
)

// memShim is a Task service in this process.
type memShim struct {
	t    testing.TB
	srv  *ttrpc.Server
	next chan net.Conn

	mu     sync.Mutex
	hangs  map[string]chan struct{} // by method
	errs   map[string]error
	counts map[string]int
	says   map[string]proto.Message // instead of the usual answer, by method
	exit   *taskapi.WaitResponse
	exits  chan struct{} // closed with exit set
}

func newMemShim(t testing.TB) *memShim {
	s := &memShim{
		t: t, next: make(chan net.Conn, 16), hangs: make(map[string]chan struct{}), errs: make(map[string]error),
		counts: make(map[string]int), says: make(map[string]proto.Message), exits: make(chan struct{}),
	}
	var err error
	s.srv, err = ttrpc.NewServer()
	require.NoError(t, err)
	desc := &ttrpc.ServiceDesc{Methods: make(map[string]ttrpc.Method)}
	for name, m := range map[string]struct{ req, resp proto.Message }{
		"State":    {&taskapi.StateRequest{}, &taskapi.StateResponse{Status: 2}},
		"Wait":     {&taskapi.WaitRequest{}, nil},
		"Connect":  {&taskapi.ConnectRequest{}, &taskapi.ConnectResponse{}},
		"Create":   {&taskapi.CreateTaskRequest{}, &taskapi.CreateTaskResponse{Pid: ownPid()}},
		"Start":    {&taskapi.StartRequest{}, &taskapi.StartResponse{Pid: ownPid()}},
		"Pids":     {&taskapi.PidsRequest{}, &taskapi.PidsResponse{}},
		"Kill":     {&taskapi.KillRequest{}, &emptypb.Empty{}},
		"Pause":    {&taskapi.PauseRequest{}, &emptypb.Empty{}},
		"Delete":   {&taskapi.DeleteRequest{}, &taskapi.DeleteResponse{}},
		"Shutdown": {&taskapi.ShutdownRequest{}, &emptypb.Empty{}},
	} {
		desc.Methods[name] = func(ctx context.Context, unmarshal func(any) error) (any, error) {
			req := proto.Clone(m.req)
			if err := unmarshal(req); err != nil {
				return nil, err
			}
			return s.answer(ctx, name, m.resp)
		}
	}
	s.srv.RegisterService("containerd.task.v3.Task", desc)
	stopped := s.serve(pipeListener{s.next})
	t.Cleanup(func() {
		s.mu.Lock()
		for _, ch := range s.hangs {
			close(ch)
		}
		s.mu.Unlock()
		close(s.next)
		_ = s.srv.Close()
		<-stopped
	})
	return s
}

// serve serves connections of a listener too, until the test ends.
func (s *memShim) serve(l net.Listener) (stopped <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.srv.Serve(context.Background(), l)
	}()
	return done
}

func (s *memShim) answer(ctx context.Context, method string, resp proto.Message) (any, error) {
	s.mu.Lock()
	s.counts[method]++
	hang, err := s.hangs[method], s.errs[method]
	s.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if err != nil {
		return nil, err
	}
	if method != "Wait" {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r := s.says[method]; r != nil {
			resp = r
		}
		return resp, nil
	}
	select {
	case <-s.exits:
		return s.exit, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// connect makes a connection to the shim.
func (s *memShim) connect() *shimclient.Conn {
	here, there := net.Pipe()
	s.next <- there
	c := shimclient.NewConn(here, testEndpoint, shimclient.DefaultDeadlines())
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// stall makes methods hang until resume.
func (s *memShim) stall(methods ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range methods {
		s.hangs[m] = make(chan struct{})
	}
}

func (s *memShim) resume(methods ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range methods {
		close(s.hangs[m])
		delete(s.hangs, m)
	}
}

func (s *memShim) fail(method string, code codes.Code, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs[method] = status.Error(code, text)
}

// say makes a method answer with something else.
func (s *memShim) say(method string, resp proto.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.says[method] = resp
}

func (s *memShim) well(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.errs, method)
}

func (s *memShim) count(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[method]
}

// exitWith answers all Waits.
func (s *memShim) exitWith(code uint32, at time.Time) {
	s.exit = &taskapi.WaitResponse{ExitStatus: code, ExitedAt: timestamppb.New(at)}
	close(s.exits)
}

// pipeListener accepts what is sent to it.
type pipeListener struct{ next <-chan net.Conn }

func (l pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l.next
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (pipeListener) Close() error   { return nil }
func (pipeListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "pipe"} }
