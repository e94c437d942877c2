// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
)

// A call on a full socket ends at its own deadline; the connection ends when
// nothing was taken for the whole write timeout, and with it the Waits.
func TestWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far, conn, task := pipeTask(t, DefaultDeadlines())
		defer far.Close()
		begin := time.Now()
		wait := make(chan error, 1)
		go func() {
			_, err := task.Wait(context.Background(), &api.WaitRequest{ID: "c"})
			wait <- err
		}()
		// Past writePatience, so that no goroutine waits on ttrpc's lock, which
		// would hold up the bubble's clock.
		time.Sleep(time.Second)

		_, err := task.State(context.Background(), &api.StateRequest{ID: "c"})
		require.ErrorIs(t, err, ErrNoAnswer)
		require.Equal(t, 3*time.Second, time.Since(begin))
		requireUp(t, conn)

		err = <-wait
		requireLost(t, err)
		require.Equal(t, writePatience+DefaultWriteTimeout+answerGrace, time.Since(begin))
		requireDone(t, conn)
		require.NoError(t, conn.Close())
	})
}

// A peer that takes a little within each write timeout keeps the connection.
func TestSlowPeer(t *testing.T) {
	if !writeResumable {
		t.Skip("a write that timed out cannot be resumed here")
	}
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		w := newWire(near)
		sent := bytes.Repeat([]byte("0123456789"), 5)
		for _, p := range [][]byte{sent[:20], sent[20:21], sent[21:]} {
			n, err := w.Write(p)
			require.NoError(t, err)
			require.Equal(t, len(p), n)
		}
		got := make([]byte, len(sent))
		for i := range got {
			time.Sleep(DefaultWriteTimeout - time.Second)
			_, err := io.ReadFull(far, got[i:i+1])
			require.NoError(t, err)
		}
		require.Equal(t, string(sent), string(got))
		synctest.Wait()
		require.NoError(t, w.lost())
		require.False(t, w.draining)
		require.NoError(t, w.Close())
		require.ErrorIs(t, w.lost(), errClosedAbove)
	})
}

// What arrived before a write failed is still read; the reason is the write's.
func TestReadAfterFailedWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		w := newWire(brokenWrites{near})
		_, err := w.Write([]byte("x"))
		require.ErrorIs(t, err, errBroken)
		require.NoError(t, w.lost())

		go func() { _, _ = far.Write([]byte("answer")) }()
		got := make([]byte, 6)
		_, err = io.ReadFull(w, got)
		require.NoError(t, err)
		require.Equal(t, "answer", string(got))

		begin := time.Now()
		_, err = w.Read(got)
		require.Error(t, err)
		require.Equal(t, lastRead+answerGrace, time.Since(begin))
		require.ErrorIs(t, w.lost(), errBroken)
		_, err = w.Write([]byte("x"))
		require.ErrorIs(t, err, errBroken)
	})
}

// An answer in the shim's last breath is an answer.
func TestLastBreath(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			defer time.Sleep(2 * answerGrace) // for the connection's goroutine to end
			far, conn, task := pipeTask(t, nil)
			defer conn.Close()
			go func() {
				request := make([]byte, 1024)
				_, _ = io.ReadAtLeast(far, request, 30)
				response := []byte{0, 0, 0, 0, 0, 0, 0, 1, 2, 0} // ttrpc: length, stream, type, flags
				_, _ = far.Write(response)
				_ = far.Close()
			}()
			_, err := task.Wait(context.Background(), &api.WaitRequest{ID: "c"})
			require.NoError(t, err)
			requireDone(t, conn)
		})
	}
}

var errBroken = errors.New("broken")

type brokenWrites struct{ net.Conn }

// Write implements net.Conn.
func (brokenWrites) Write([]byte) (int, error) { return 0, errBroken }

// A day without a call leaves a gRPC connection up, and the same one.
func TestGRPCIdles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		srv := grpc.NewServer()
		srv.RegisterService(grpcService(taskServices[3], answerPid), nil)
		l := newOnePipe(far)
		go func() { _ = srv.Serve(l) }()
		defer srv.Stop()

		conn, err := newGRPCConn(context.Background(), near,
			Endpoint{Protocol: protocolGRPC, Address: "/pipe", Version: 3}, DefaultDeadlines())
		require.NoError(t, err)
		defer conn.Close()
		task, err := conn.Task(3)
		require.NoError(t, err)
		for range 3 {
			time.Sleep(24 * time.Hour)
			requireUp(t, conn)
			resp, err := task.Connect(context.Background(), &api.ConnectRequest{ID: "c"})
			require.NoError(t, err)
			require.EqualValues(t, 42, resp.ShimPid)
		}
	})
}
