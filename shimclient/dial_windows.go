// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"net"

	winio "github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

const errWSARefused = windows.WSAECONNREFUSED

// writeResumable: a cancelled write on a pipe does not say reliably how much
// of it the peer got.
const writeResumable = false

func dialPipe(ctx context.Context, path string) (net.Conn, error) {
	return winio.DialPipeContext(ctx, path)
}
