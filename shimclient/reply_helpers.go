// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"math"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
)

// parseDelete reads what `delete` has written to stdout. What it says of pid and time counts where there can be such.
// Error: ErrDeleteReply.
func parseDelete(stdout []byte) (*DeleteResult, error) {
	if len(stdout) == 0 {
		// An exit status of 0 without pid and time looks the same, and no shim means that.
		return nil, errors.Wrap(ErrDeleteReply, "it is empty")
	}
	var reply taskapi.DeleteResponse
	if err := proto.Unmarshal(stdout, &reply); err != nil {
		return nil, errors.Wrapf(ErrDeleteReply, "cannot parse its reply %s: %v", quoteReply(stdout), err)
	}
	result := &DeleteResult{Pid: reply.Pid, Status: reply.ExitStatus}
	if int32(result.Pid) < 0 {
		result.Pid = 0 // runc shims of containerd 1.7 to 2.2 answer -1 then
	}
	// No record could hold another, and no sum of nanoseconds a later one.
	if at := reply.ExitedAt; at.IsValid() && at.Seconds < math.MaxInt64/int64(time.Second) {
		result.ExitedAt = reply.ExitedAt.AsTime()
	}
	return result, nil
}

// parseInfo reads what `-info` has written to stdout. Error: InvalidArgument.
func parseInfo(stdout []byte) (*types.RuntimeInfo, error) {
	info := &types.RuntimeInfo{}
	if err := proto.Unmarshal(stdout, info); err != nil {
		return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "cannot parse its reply %s: %v", quoteReply(stdout), err)
	}
	return info, nil
}
