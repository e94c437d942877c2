// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/pkg/errors"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// logged collects what goes to the daemon's log, to which ttrpc writes without being asked.
func logged(t *testing.T) *logtest.Hook {
	t.Helper()
	hook := &logtest.Hook{}
	before := log.L.Logger.ReplaceHooks(logrus.LevelHooks{})
	log.L.Logger.AddHook(hook)
	t.Cleanup(func() { log.L.Logger.ReplaceHooks(before) })
	return hook
}

// frame is a message of ttrpc's.
func frame(stream uint32, kind byte, payload []byte) []byte {
	f := make([]byte, 10, 10+len(payload))
	binary.BigEndian.PutUint32(f, uint32(len(payload)))
	binary.BigEndian.PutUint32(f[4:], stream)
	f[8] = kind
	return append(f, payload...)
}

// answer is the message that answers a call with m.
func answer(t *testing.T, stream uint32, m proto.Message) []byte {
	t.Helper()
	payload, err := proto.Marshal(m)
	require.NoError(t, err)
	response, err := proto.Marshal(&ttrpc.Response{Payload: payload})
	require.NoError(t, err)
	return frame(stream, 2, response)
}

// readRequest reads one request and returns its stream.
func readRequest(t *testing.T, peer net.Conn) uint32 {
	t.Helper()
	header := make([]byte, 10)
	_, err := io.ReadFull(peer, header)
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, peer, int64(binary.BigEndian.Uint32(header)))
	require.NoError(t, err)
	return binary.BigEndian.Uint32(header[4:])
}

// What a shim answers when its caller has gone is no error of anybody's, and costs the next call nothing.
func TestAnswerToNobody(t *testing.T) {
	noLeaks(t)
	hook := logged(t)
	peer, _, client := acceptOne(t)
	for _, end := range []struct {
		err  error
		give func() (context.Context, context.CancelFunc)
	}{
		{context.Canceled, func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) }},
		{context.DeadlineExceeded, func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 50*time.Millisecond)
		}},
	} {
		ctx, cancel := end.give()
		defer cancel()
		failed := make(chan error, 1)
		go func() {
			_, err := client.Wait(ctx, &api.WaitRequest{ID: "c"})
			failed <- err
		}()
		late := readRequest(t, peer)
		if end.err == context.Canceled {
			cancel()
		}
		require.ErrorIs(t, <-failed, end.err)

		asked := make(chan error, 1)
		go func() {
			r, err := client.State(testContext(t), &api.StateRequest{ID: "c"})
			if err == nil && r.Status != task.Status_RUNNING {
				err = errors.Errorf("another answer: %v", r)
			}
			asked <- err
		}()
		next := readRequest(t, peer)
		_, err := peer.Write(append(answer(t, late, &api.WaitResponse{ExitStatus: 7}),
			answer(t, next, &api.StateResponse{Status: task.Status_RUNNING})...))
		require.NoError(t, err)
		require.NoError(t, <-asked)
	}
	require.Zero(t, len(hook.AllEntries()), "lines are logged")
}

// An answer to a call that nobody made is still said: that shim is broken.
func TestAnswerToNoCall(t *testing.T) {
	noLeaks(t)
	hook := logged(t)
	peer, conn, _ := acceptOne(t)
	_, err := peer.Write(answer(t, 77, &api.WaitResponse{}))
	require.NoError(t, err)
	require.NoError(t, peer.Close())
	requireDone(t, conn)
	eventually(t, func() bool { return len(hook.AllEntries()) == 1 }, "nothing is said")
	require.Contains(t, hook.LastEntry().Message, "inactive stream")
}

// Calls that are given up at the moment at which they are answered say nothing either, and all others get their own
// answers, of any size.
func TestAnswersWhileGivingUp(t *testing.T) {
	noLeaks(t)
	hook := logged(t)
	_, conn, client := connectTask(t, Endpoint{Protocol: protocolTTRPC, Version: 3}, nil,
		func(_ context.Context, method string, req proto.Message) (proto.Message, error) {
			if method == "Wait" {
				time.Sleep(time.Millisecond)
				return &api.WaitResponse{}, nil
			}
			return &api.StateResponse{ID: req.(*api.StateRequest).ID}, nil
		})
	var calls sync.WaitGroup
	for worker := range 4 {
		calls.Go(func() {
			for range 250 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				_, _ = client.Wait(ctx, &api.WaitRequest{ID: "c"})
				cancel()
			}
		})
		calls.Go(func() {
			for i := range 100 {
				id := strings.Repeat(string(rune('a'+worker)), 1+i*300)
				r, err := client.State(testContext(t), &api.StateRequest{ID: id})
				if err != nil || r.ID != id {
					t.Errorf("not its own answer, %v", err)
				}
			}
		})
	}
	calls.Wait()
	requireUp(t, conn)
	require.Zero(t, len(hook.AllEntries()), "lines are logged")
}

// A caller who leaves while ttrpc has the answer in its hands, and was not run since, is held until ttrpc has given it
// on: it reports an answer to a call that is not there any more.
func TestLeavingWaitsForTheAnswerOnItsWay(t *testing.T) {
	for name, next := range map[string]func(*answers){
		"read on": func(a *answers) { go func() { _, _ = a.Read(make([]byte, 1)) }() },
		"closed":  func(a *answers) { _ = a.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn, peer := net.Pipe()
				defer peer.Close()
				go func() { _, _ = io.Copy(io.Discard, peer) }()
				a := newAnswers(conn)
				defer a.Close()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				left := make(chan struct{})
				go func() {
					defer close(left)
					_ = a.intercept(ctx, nil, nil, nil, func(ctx context.Context, _ *ttrpc.Request, _ *ttrpc.Response) error {
						_, err := a.Write([]byte{0, 0, 0, 0, 0, 0, 0, 7, kindRequest, 0})
						<-ctx.Done()
						return err
					})
				}()
				synctest.Wait()
				sent := answer(t, 7, &api.WaitResponse{})
				go func() { _, _ = peer.Write(sent) }()
				_, err := io.ReadFull(a, make([]byte, len(sent)))
				require.NoError(t, err)
				cancel()
				synctest.Wait()
				select {
				case <-left:
					t.Fatal("the caller has left before")
				default:
				}
				next(a)
				synctest.Wait()
				<-left
			})
		})
	}
}

// slowPeer is a connection that gives what there is in pieces.
type slowPeer struct {
	net.Conn
	data []byte
	size int
}

func (c *slowPeer) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.data)
	c.data = c.data[n:]
	return n, nil
}

// FuzzAnswers: whatever a shim sends in whatever pieces, ttrpc gets those bytes, but for the answers to a call that was
// given up.
func FuzzAnswers(f *testing.F) {
	f.Add(append(frame(1, 2, []byte("given up")), frame(3, 2, []byte("wanted"))...), 1)
	f.Add(append(frame(1, 3, nil), frame(1, 2, nil)[:7]...), 5)
	f.Add(append([]byte{0, 0x50, 0, 0, 0, 0, 0, 1, 2, 0}, make([]byte, 100)...), 64)
	f.Add(append([]byte{0, 0x50, 0, 0, 0, 0, 0, 3, 2, 0}, make([]byte, 100)...), 64)
	f.Add(append([]byte{0, 0x50, 0, 0, 0, 0, 0, 1, 3, 0}, make([]byte, 100)...), 64)
	f.Fuzz(func(t *testing.T, sent []byte, size int) {
		a := newAnswers(&slowPeer{data: sent, size: max(1, size)})
		a.open[1] = true // given up
		got, err := io.ReadAll(a)
		require.NoError(t, err)
		want, dropped := []byte{}, false
		for rest := sent; len(rest) > 0; {
			n := len(rest)
			if n >= 10 {
				n = min(n, 10+int(binary.BigEndian.Uint32(rest)))
			}
			// One that is too long is dropped from its beginning on, whatever comes of it.
			whole := n >= 10 && (n == 10+int(binary.BigEndian.Uint32(rest)) || binary.BigEndian.Uint32(rest) > 4<<20)
			if whole && rest[8] == 2 && binary.BigEndian.Uint32(rest[4:]) == 1 && !dropped {
				dropped = true
			} else {
				want = append(want, rest[:n]...)
			}
			rest = rest[n:]
		}
		require.Equal(t, want, append([]byte{}, got...))
	})
}
