// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// acceptOne connects to a peer that is nothing but a socket.
func acceptOne(t *testing.T) (*net.UnixConn, *Conn, *Task) {
	t.Helper()
	l, path := listenUnix(t)
	conn, err := Dial(testContext(t), Endpoint{Protocol: protocolTTRPC, Address: "unix://" + path, Version: 3}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	peer, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = peer.Close() })
	task, err := conn.Task(3)
	require.NoError(t, err)
	return peer.(*net.UnixConn), conn, task
}

func TestHalfClosed(t *testing.T) {
	t.Run("the peer writes no more", func(t *testing.T) {
		noLeaks(t)
		peer, conn, task := acceptOne(t)
		require.NoError(t, peer.CloseWrite())
		requireDone(t, conn)
		_, err := task.State(testContext(t), &api.StateRequest{ID: "c"})
		requireLost(t, err)
	})
	t.Run("the peer reads no more", func(t *testing.T) {
		noLeaks(t)
		peer, conn, task := acceptOne(t)
		require.NoError(t, peer.CloseRead())
		_, err := task.State(testContext(t), &api.StateRequest{ID: "c"})
		requireLost(t, err)
		requireDone(t, conn)
		require.ErrorContains(t, conn.wire.lost(), "broken pipe")
	})
}

func TestGarbage(t *testing.T) {
	header := func(length uint32, stream byte, kind byte) []byte {
		return []byte{byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length), 0, 0, 0, stream, kind, 0}
	}
	for name, garbage := range map[string][]byte{
		"text":                        []byte("panic: runtime error: invalid memory address\n\ngoroutine 1 [running]:\n"),
		"a message too large":         header(5<<20, 1, 2),
		"a message without end":       header(100, 1, 2),
		"half a header":               header(0, 1, 2)[:4],
		"a response that is none":     append(header(4, 1, 2), 0xff, 0xff, 0xff, 0xff),
		"data instead of a response":  header(0, 1, 3),
		"an unknown type":             header(0, 1, 77),
		"a response nobody asked for": header(0, 9, 2),
		"a response with no payload":  header(0, 1, 2),
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			peer, conn, task := acceptOne(t)
			failed := make(chan error, 1)
			go func() {
				_, err := task.Wait(context.Background(), &api.WaitRequest{ID: "c"})
				failed <- err
			}()
			// The request, so that its stream exists.
			request := make([]byte, 10)
			_, err := io.ReadFull(peer, request)
			require.NoError(t, err)
			_, err = peer.Write(garbage)
			require.NoError(t, err)
			require.NoError(t, peer.Close())
			requireDone(t, conn)
			err = <-failed
			if name == "a response with no payload" {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			require.True(t, errdefs.IsUnavailable(err) || errdefs.IsUnknown(err), "%v", err)
		})
	}
}

func TestTooLarge(t *testing.T) {
	for _, protocol := range []string{protocolTTRPC, protocolGRPC} {
		t.Run(protocol, func(t *testing.T) {
			noLeaks(t)
			_, conn, task := connectTask(t, Endpoint{Protocol: protocol, Version: 3}, nil,
				func(context.Context, string, proto.Message) (proto.Message, error) { return nil, nil })
			spec := func(size int) *api.ExecProcessRequest {
				return &api.ExecProcessRequest{ID: "c", Spec: &anypb.Any{Value: make([]byte, size)}}
			}
			require.NoError(t, task.Exec(testContext(t), spec(3<<20)))
			err := task.Exec(testContext(t), spec(17<<20))
			require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
			requireUp(t, conn)
			require.NoError(t, task.Exec(testContext(t), spec(1)))
		})
	}
}

// Stalls of the peer delay calls; they neither fail nor reorder them.
func TestPeerReadsLate(t *testing.T) {
	for _, protocol := range []string{protocolTTRPC, protocolGRPC} {
		t.Run(protocol, func(t *testing.T) {
			noLeaks(t)
			l, path := listenUnix(t)
			e := Endpoint{Protocol: protocol, Address: "unix://" + path, Version: 3}
			slow := &slowListener{Listener: l}
			serveTask(t, slow, e, func(_ context.Context, _ string, req proto.Message) (proto.Message, error) {
				return nil, nil
			})
			conn, err := Dial(testContext(t), e, nil)
			require.NoError(t, err)
			defer conn.Close()
			task, err := conn.Task(3)
			require.NoError(t, err)

			slow.stall.Lock()
			var calls sync.WaitGroup
			for range 10 {
				calls.Go(func() {
					if err := task.Exec(testContext(t),
						&api.ExecProcessRequest{ID: "c", Spec: &anypb.Any{Value: make([]byte, 1<<20)}}); err != nil {
						t.Error(err)
					}
				})
			}
			if protocol == protocolTTRPC {
				eventually(t, func() bool {
					conn.wire.mu.Lock()
					defer conn.wire.mu.Unlock()
					return conn.wire.draining && len(conn.wire.unsent) > 1<<20
				}, "nothing kept")
			}
			slow.stall.Unlock()
			calls.Wait()
			conn.wire.mu.Lock()
			require.False(t, conn.wire.draining && len(conn.wire.unsent) > 0)
			conn.wire.mu.Unlock()
		})
	}
}

// slowListener's connections read next to nothing while stall is held.
type slowListener struct {
	net.Listener
	stall sync.Mutex
}

type slowConn struct {
	net.Conn
	stall *sync.Mutex
}

// Accept implements net.Listener.
func (l *slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return slowConn{c, &l.stall}, err
}

// Read implements net.Conn.
func (c slowConn) Read(p []byte) (int, error) {
	c.stall.Lock()
	n := min(len(p), 4096)
	c.stall.Unlock()
	return c.Conn.Read(p[:n])
}

// A peer that never reads holds up no caller past its context, however much is
// to be sent.
func TestPeerNeverReads(t *testing.T) {
	noLeaks(t)
	_, conn, task := acceptOne(t)
	conn.wire.writeTimeout = time.Hour
	ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
	defer cancel()
	var calls sync.WaitGroup
	for range 50 {
		calls.Go(func() {
			err := task.Exec(ctx, &api.ExecProcessRequest{ID: "c", Spec: &anypb.Any{Value: make([]byte, 200<<10)}})
			if !errdefs.IsDeadlineExceeded(err) {
				t.Errorf("want the caller's deadline: %v", err)
			}
		})
	}
	calls.Wait()
	requireUp(t, conn)
}

// Such a peer loses the connection in the end.
func TestPeerIsGivenUp(t *testing.T) {
	noLeaks(t)
	_, conn, task := acceptOne(t)
	conn.wire.writeTimeout = 50 * time.Millisecond
	requireLost(t, task.Exec(context.Background(),
		&api.ExecProcessRequest{ID: "c", Spec: &anypb.Any{Value: make([]byte, 1<<20)}}))
	requireDone(t, conn)
	require.ErrorContains(t, conn.wire.lost(), "reads nothing")
}

// What is kept for a peer that does not read is bounded.
func TestTooMuchUnsent(t *testing.T) {
	noLeaks(t)
	_, conn, task := acceptOne(t)
	conn.wire.writeTimeout = time.Hour
	for range maxUnsent>>21 + 2 {
		go func() {
			_ = task.Exec(context.Background(),
				&api.ExecProcessRequest{ID: "c", Spec: &anypb.Any{Value: make([]byte, 2<<20)}})
		}()
	}
	requireDone(t, conn)
	require.ErrorIs(t, conn.wire.lost(), errUnsent)
}
