// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"net"

	"github.com/mdlayher/vsock"
)

// dialVsock connects to a port of a VM. The library cannot be interrupted; an
// attempt that outlives ctx is closed when it ends, which the kernel sees to
// after 2 s (VSOCK_DEFAULT_CONNECT_TIMEOUT).
func dialVsock(ctx context.Context, cid, port uint32) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		var r result
		// A nil *vsock.Conn must not become a net.Conn.
		if conn, err := vsock.Dial(cid, port, nil); err != nil {
			r.err = err
		} else {
			r.conn = conn
		}
		select {
		case done <- r:
		case <-ctx.Done():
			if r.conn != nil {
				_ = r.conn.Close()
			}
		}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
