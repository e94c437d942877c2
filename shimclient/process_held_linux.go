// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// maxHeld is how many processes are held at most: a quarter of the descriptors that the daemon may have, so that there
// are always some for connections.
var maxHeld = sync.OnceValue(func() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int64(min(limit.Cur, 1<<30)) / 4
})

// Hold holds the process until Close. Errors: NotFound when it is gone, ResourceExhausted when as many processes are
// held as may be.
func (p ProcessID) Hold() (*Held, error) {
	if held.Load() >= maxHeld() {
		return nil, errors.Wrapf(errdefs.ErrResourceExhausted, "cannot hold process %d beside %d others", p.Pid,
			maxHeld())
	}
	fd, err := p.pin()
	if err != nil {
		return nil, err
	}
	return newHeld(p, os.NewFile(uintptr(fd), "pidfd"), pidfdReadable)
}
