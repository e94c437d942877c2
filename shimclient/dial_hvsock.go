// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

// maxHybridReply bounds the monitor's answer ("OK" and a port number).
const maxHybridReply = 128

// errGuestNotReady is returned when a VM's monitor hung up instead of
// answering: no listener on that port in the guest, maybe not yet.
var errGuestNotReady = errors.New("no listener on that port in the guest")

// dialHybridVsock connects to a port in a VM through the socket file of its
// monitor. The protocol is Firecracker's: "CONNECT port", answered by "OK …". Any user may listen, unlike in dialShim:
// the jailer has Firecracker run as a user whom the daemon does not know. What keeps others from posing as the monitor
// is the socket's directory; there is no abstract name here that they could take.
func dialHybridVsock(ctx context.Context, path string, port uint32) (net.Conn, error) {
	conn, err := dialUnix(ctx, path)
	if err != nil {
		return nil, err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	err = hybridHandshake(conn, port)
	if !stop() {
		<-interrupted
		if err == nil {
			err = ctx.Err()
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func hybridHandshake(conn net.Conn, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return guestError(err)
	}
	// Byte by byte: what follows the line belongs to the shim's protocol.
	line := make([]byte, 0, maxHybridReply)
	for len(line) == 0 || line[len(line)-1] != '\n' {
		if len(line) == maxHybridReply {
			return errors.Errorf("the VM's monitor answered %q… to CONNECT %d", line, port)
		}
		n := len(line)
		if _, err := io.ReadFull(conn, line[n:n+1]); err != nil {
			return guestError(err)
		}
		line = line[:n+1]
	}
	if reply := strings.TrimSpace(string(line)); reply != "OK" && !strings.HasPrefix(reply, "OK ") {
		return errors.Errorf("the VM's monitor answered %q to CONNECT %d", reply, port)
	}
	return nil
}

func guestError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return errGuestNotReady
	}
	return err
}
