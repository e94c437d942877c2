// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"net"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// peerUID returns the user of the process that listens at the other end of a unix
// socket.
func peerUID(conn net.Conn) (uid uint32, known bool, err error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, false, nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, false, errors.Wrap(err, "cannot tell who listens there")
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, false, errors.Wrap(err, "cannot tell who listens there")
	}
	if cerr != nil {
		return 0, false, errors.Wrap(cerr, "cannot tell who listens there")
	}
	return cred.Uid, true, nil
}
