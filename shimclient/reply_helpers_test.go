// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"encoding/json"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A time that no calendar has is no time: a record with it could not be written.
func TestDeleteReplyOfNoTime(t *testing.T) {
	for _, at := range []*timestamppb.Timestamp{nil, {Seconds: 1 << 60}, {Seconds: -1 << 60}, {Seconds: 1, Nanos: -1}} {
		reply, err := proto.Marshal(&taskapi.DeleteResponse{Pid: 7, ExitStatus: 3, ExitedAt: at})
		require.NoError(t, err)
		r, err := parseDelete(reply)
		require.NoError(t, err)
		require.Equal(t, &DeleteResult{Pid: 7, Status: 3}, r, "%v", at)
	}
}

func FuzzDeleteReply(f *testing.F) {
	for _, r := range []*taskapi.DeleteResponse{
		{Pid: 7, ExitStatus: 137, ExitedAt: timestamppb.New(time.Unix(1e9, 5))},
		{Pid: 1<<32 - 1, ExitStatus: 1<<32 - 1, ExitedAt: &timestamppb.Timestamp{Seconds: 1 << 60}},
		{ExitedAt: &timestamppb.Timestamp{Nanos: -1}},
	} {
		reply, err := proto.Marshal(r)
		require.NoError(f, err)
		f.Add(reply)
	}
	f.Add([]byte("panic: out of memory\n"))
	f.Fuzz(func(t *testing.T, stdout []byte) {
		r, err := parseDelete(stdout)
		if err != nil {
			require.ErrorIs(t, err, ErrDeleteReply)
			require.Less(t, len(err.Error()), 4*quotedReply+512)
			return
		}
		require.GreaterOrEqual(t, int32(r.Pid), int32(0))
		_, err = json.Marshal(r.ExitedAt)
		require.NoError(t, err, "it can be recorded")
	})
}

func FuzzInfoReply(f *testing.F) {
	info, err := proto.Marshal(&types.RuntimeInfo{Name: "io.containerd.runc.v2",
		Annotations: map[string]string{"a": "b"}})
	require.NoError(f, err)
	f.Add(info)
	f.Add([]byte("usage: shim [flags]\n"))
	f.Fuzz(func(t *testing.T, stdout []byte) {
		info, err := parseInfo(stdout)
		if err != nil {
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			return
		}
		require.NotNil(t, info)
	})
}
