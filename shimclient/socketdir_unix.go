// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// socketDirMode lets only its owner reach a socket: a client that can connect to a shim commands its containers.
const socketDirMode os.FileMode = 0o700

// SecureSocketDir makes the directory that shims put their sockets into, where it is missing, and closes it to others.
// FailedPrecondition where what is there is not a directory of the daemon's user or of root's, or is a link: another
// user could put sockets of theirs into it.
func SecureSocketDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return errors.Wrap(err, "cannot make the directory above that of the shims' sockets")
	}
	if err := os.Mkdir(dir, socketDirMode); err != nil && !errors.Is(err, os.ErrExist) {
		return errors.Wrap(err, "cannot make the directory for the shims' sockets")
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return errors.Wrap(err, "cannot look at the directory for the shims' sockets")
	}
	if !info.IsDir() {
		return errors.Wrapf(errdefs.ErrFailedPrecondition,
			"%s, for the shims' sockets, is not a directory (%s); name another one, or where a link leads",
			dir, info.Mode().Type())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return errors.Wrapf(errdefs.ErrFailedPrecondition, "%s, for the shims' sockets, belongs to the user %d", dir,
			st.Uid)
	}
	if info.Mode().Perm() == socketDirMode {
		return nil
	}
	return errors.Wrap(os.Chmod(dir, socketDirMode), "cannot close the directory for the shims' sockets to others")
}
