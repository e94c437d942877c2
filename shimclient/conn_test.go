// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"net"
	"strconv"
	"sync"
	"testing"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// hanging counts the Waits and answers none of them until the test ends.
func hanging(t *testing.T, calls *sync.WaitGroup) answerFunc {
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	return func(_ context.Context, method string, _ proto.Message) (proto.Message, error) {
		if method == "Wait" {
			calls.Done()
			<-end
		}
		return nil, nil
	}
}

// waitInFlight starts n Waits and returns, when they have all arrived, where
// their errors will.
func waitInFlight(t *testing.T, task *Task, arrived *sync.WaitGroup, n int) <-chan error {
	t.Helper()
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := task.Wait(context.Background(), &api.WaitRequest{ID: "c"})
			errs <- err
		}()
	}
	arrived.Wait()
	return errs
}

func requireLost(t *testing.T, err error) {
	t.Helper()
	require.ErrorIs(t, err, ErrConnectionLost)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
}

func requireDone(t *testing.T, conn *Conn) {
	t.Helper()
	select {
	case <-conn.Done():
	case <-testContext(t).Done():
		require.FailNow(t, "the connection is not known to be lost")
	}
}

func requireUp(t *testing.T, conn *Conn) {
	t.Helper()
	select {
	case <-conn.Done():
		require.FailNow(t, "the connection is lost", "%v", conn.wire.lost())
	default:
	}
}

func TestConcurrentCalls(t *testing.T) {
	flavours(t, func(t *testing.T, e Endpoint) {
		noLeaks(t)
		srv, conn, task := connectTask(t, e, nil,
			func(_ context.Context, _ string, req proto.Message) (proto.Message, error) {
				return &api.StateResponse{ID: req.(*api.StateRequest).ID}, nil
			})
		var calls sync.WaitGroup
		for i := range 100 {
			calls.Go(func() {
				for j := range 10 {
					id := strconv.Itoa(1000*i + j)
					resp, err := task.State(testContext(t), &api.StateRequest{ID: id})
					if err != nil || resp.ID != id {
						t.Errorf("State of %s: %v, %v", id, resp, err)
					}
				}
			})
		}
		calls.Wait()
		require.Equal(t, 1, srv.accepted())
		requireUp(t, conn)
	})
}

// The end of the shim ends what waits for it, and nothing connects again: not
// even to the next shim at the same address.
func TestShimDies(t *testing.T) {
	flavours(t, func(t *testing.T, e Endpoint) {
		noLeaks(t)
		var arrived sync.WaitGroup
		arrived.Add(20)
		srv, conn, task := connectTask(t, e, nil, hanging(t, &arrived))
		errs := waitInFlight(t, task, &arrived, 20)
		requireUp(t, conn)

		srv.die()
		requireDone(t, conn)
		for range 20 {
			requireLost(t, <-errs)
		}
		l, err := net.Listen("unix", conn.Endpoint().Address[len("unix://"):])
		require.NoError(t, err)
		next := serveTask(t, l, e, hanging(t, &arrived))
		for range 3 {
			_, err = task.State(testContext(t), &api.StateRequest{ID: "c"})
			requireLost(t, err)
		}
		require.Zero(t, next.accepted())
		require.NoError(t, conn.Close())
	})
}

func TestClose(t *testing.T) {
	flavours(t, func(t *testing.T, e Endpoint) {
		noLeaks(t)
		var arrived sync.WaitGroup
		arrived.Add(5)
		_, conn, task := connectTask(t, e, nil, hanging(t, &arrived))
		errs := waitInFlight(t, task, &arrived, 5)
		var closers sync.WaitGroup
		for range 10 {
			closers.Go(func() {
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
				select {
				case <-conn.Done():
				default:
					t.Error("closed, and not done")
				}
			})
		}
		closers.Wait()
		for range 5 {
			requireLost(t, <-errs)
		}
		requireLost(t, task.Kill(testContext(t), &api.KillRequest{ID: "c"}))
	})
}

// A server that takes no more calls, but lives: ours are lost, and it is not
// for the library to connect again.
func TestGoAway(t *testing.T) {
	noLeaks(t)
	l, path := listenUnix(t)
	srv := grpc.NewServer()
	srv.RegisterService(grpcService(taskServices[3], answerPid), nil)
	e := Endpoint{Protocol: protocolGRPC, Address: "unix://" + path, Version: 3}
	hold := make(chan struct{})
	counted := &taskServer{Listener: l}
	srv.RegisterService(grpcService(taskServices[2],
		func(context.Context, string, proto.Message) (proto.Message, error) {
			hold <- struct{}{}
			<-hold
			return nil, nil
		}), nil)
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(counted) }()
	t.Cleanup(func() { srv.Stop(); <-served })

	conn, err := Dial(testContext(t), e, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	slow, err := conn.Task(2)
	require.NoError(t, err)
	inFlight := make(chan error)
	go func() { inFlight <- slow.Pause(context.Background(), &api.PauseRequest{ID: "c"}) }()
	<-hold

	stopped := make(chan struct{})
	go func() { defer close(stopped); srv.GracefulStop() }()
	task, err := conn.Task(3)
	require.NoError(t, err)
	eventually(t, func() bool {
		_, err = task.Connect(testContext(t),
			&api.ConnectRequest{ID: "c"})
		return err != nil
	}, "")
	requireLost(t, err)
	requireDone(t, conn)
	requireLost(t, <-inFlight)
	close(hold)
	<-stopped
	require.Equal(t, 1, counted.accepted())
}

// A shim that answers its last call and leaves at once has answered.
func TestLastAnswer(t *testing.T) {
	flavours(t, func(t *testing.T, e Endpoint) {
		noLeaks(t)
		for range 20 {
			srv, conn, task := connectTask(t, e, nil,
				func(context.Context, string, proto.Message) (proto.Message, error) { return nil, nil })
			require.NoError(t, task.Shutdown(testContext(t), &api.ShutdownRequest{ID: "c"}))
			srv.die()
			requireDone(t, conn)
			require.NoError(t, conn.Close())
		}
	})
}

func TestRaw(t *testing.T) {
	noLeaks(t)
	for protocol, want := range map[string]any{protocolTTRPC: &ttrpc.Client{}, protocolGRPC: &grpc.ClientConn{}} {
		_, conn, _ := connectTask(t, Endpoint{Protocol: protocol, Version: 3}, nil, answerPid)
		require.IsType(t, want, conn.Raw())
		_, err := sandbox.NewClient(conn.Raw())
		require.NoError(t, err)
	}
}

// One goroutine is all that a ttrpc connection costs.
func TestGoroutines(t *testing.T) {
	eventually(t, func() bool { return connRoutines() == 0 }, "left by another test")
	_, conn, _ := acceptOne(t)
	require.Equal(t, 1, connRoutines())
	require.NoError(t, conn.Close())
	eventually(t, func() bool { return connRoutines() == 0 }, "left by the connection")
}
