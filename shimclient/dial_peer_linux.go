// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"net"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// listenerOf returns the process that began to listen at the other end of a unix
// socket; nil when conn is none.
func listenerOf(conn net.Conn) (*listener, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, errors.Wrap(err, "cannot identify the listener")
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, errors.Wrap(err, "cannot identify the listener")
	}
	if cerr != nil {
		return nil, errors.Wrap(cerr, "cannot identify the listener")
	}
	return &listener{uid: cred.Uid, pid: int(cred.Pid)}, nil
}
