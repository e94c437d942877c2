// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"testing"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// statsOf is an answer for which length gives the wanted number of bytes.
func statsOf(t *testing.T, want int, length func(proto.Message) int) *api.StatsResponse {
	t.Helper()
	r := &api.StatsResponse{Stats: &anypb.Any{Value: make([]byte, want-64)}}
	r.Stats.Value = make([]byte, len(r.Stats.Value)+want-length(r))
	require.Equal(t, want, length(r))
	return r
}

// TestTooLargeAnswer: an answer may be as long as the protocol's limit. One byte more fails its call and no other: the
// connection is kept.
func TestTooLargeAnswer(t *testing.T) {
	t.Run("ttrpc", func(t *testing.T) {
		noLeaks(t)
		peer, conn, client := acceptOne(t)
		stats := func(reply func(stream uint32) []byte) error {
			failed := make(chan error, 1)
			go func() {
				_, err := client.Stats(testContext(t), &api.StatsRequest{ID: "c"})
				failed <- err
			}()
			_, err := peer.Write(reply(readRequest(t, peer)))
			require.NoError(t, err)
			return <-failed
		}
		longest := statsOf(t, 4<<20, func(m proto.Message) int {
			payload, err := proto.Marshal(m)
			require.NoError(t, err)
			return proto.Size(&ttrpc.Response{Payload: payload})
		})
		require.NoError(t, stats(func(stream uint32) []byte { return answer(t, stream, longest) }))
		err := stats(func(stream uint32) []byte { return frame(stream, kindResponse, make([]byte, 4<<20+1)) })
		require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
		requireUp(t, conn)
		require.NoError(t, stats(func(stream uint32) []byte { return answer(t, stream, &api.StatsResponse{}) }))
	})
	t.Run("grpc", func(t *testing.T) {
		noLeaks(t)
		answers := make(chan proto.Message, 1)
		_, conn, client := connectTask(t, Endpoint{Protocol: protocolGRPC, Version: 3}, nil,
			func(context.Context, string, proto.Message) (proto.Message, error) { return <-answers, nil })
		stats := func(size int) error {
			answers <- statsOf(t, size, proto.Size)
			_, err := client.Stats(testContext(t), &api.StatsRequest{ID: "c"})
			return err
		}
		require.NoError(t, stats(16<<20))
		err := stats(16<<20 + 1)
		require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
		requireUp(t, conn)
		require.NoError(t, stats(100))
	})
}

// TestTooLargeAnswerToNobody: one whose caller has left is read over, and nothing is kept or said of it.
func TestTooLargeAnswerToNobody(t *testing.T) {
	noLeaks(t)
	hook := logged(t)
	peer, conn, client := acceptOne(t)
	ctx, cancel := context.WithCancel(testContext(t))
	left := make(chan error, 1)
	go func() {
		_, err := client.Stats(ctx, &api.StatsRequest{ID: "c"})
		left <- err
	}()
	stream := readRequest(t, peer)
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
	asked := make(chan error, 1)
	go func() {
		_, err := client.Stats(testContext(t), &api.StatsRequest{ID: "c"})
		asked <- err
	}()
	next := readRequest(t, peer)
	_, err := peer.Write(append(frame(stream, kindResponse, make([]byte, 4<<20+1)),
		answer(t, next, &api.StatsResponse{})...))
	require.NoError(t, err)
	require.NoError(t, <-asked)
	requireUp(t, conn)
	require.Zero(t, len(hook.AllEntries()), "lines are logged")
}
