// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package shimclient

import (
	"context"
	"net"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

func dialVsock(context.Context, uint32, uint32) (net.Conn, error) {
	return nil, errors.Wrapf(errdefs.ErrNotImplemented, "vsock on %s", runtime.GOOS)
}
