// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

var (
	// ErrLaunchTimeout is the cause when a shim did not answer `start` within
	// the launch deadline (LauncherConfig.LaunchTimeout), as opposed to the
	// caller's own. Class DeadlineExceeded.
	ErrLaunchTimeout = errors.Wrap(context.DeadlineExceeded, "launch deadline passed")

	// ErrOutputTooLong is the cause when a shim command wrote more to its
	// stdout than a reply can hold. Class InvalidArgument.
	ErrOutputTooLong = errors.Wrap(errdefs.ErrInvalidArgument, "output on stdout is longer than a reply can be (1 MiB)")

	// ErrProtocolRefused is in the error of a start when the shim said that it
	// did not understand what it got on stdin. Class FailedPrecondition.
	ErrProtocolRefused = errors.Wrap(errdefs.ErrFailedPrecondition, "shim refused the start protocol")

	// ErrDeleteReply: `shim delete` has succeeded, and what it answered cannot be
	// read. Its class is InvalidArgument. Running it again is of no use.
	ErrDeleteReply = errors.Wrap(errdefs.ErrInvalidArgument, "shim's answer to delete")
)
