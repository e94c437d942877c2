// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"context"
	"net"
	"runtime"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

const errWSARefused = syscall.ECONNREFUSED

// writeResumable: a write that ran into its deadline says how much it wrote.
const writeResumable = true

func dialPipe(context.Context, string) (net.Conn, error) {
	return nil, errors.Wrapf(errdefs.ErrNotImplemented, "named pipes on %s", runtime.GOOS)
}
