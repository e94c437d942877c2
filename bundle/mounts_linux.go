// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// errNoMountRoot: this kernel does not say what a mount point is (before 5.8), or may not.
var errNoMountRoot = errors.New("statx does not tell mount points")

// mountInside returns a mount point at or below path, "" when there is none. except is not looked into. It asks for
// each entry, as a bundle has few and a busy machine's mount table is long.
func mountInside(path, except string) (string, error) {
	mounted, err := mountAt(unix.AT_FDCWD, path, path, except)
	if errors.Is(err, errNoMountRoot) {
		return mountInTable(path, except)
	}
	return mounted, err
}

func mountAt(parent int, name, path, except string) (string, error) {
	var st unix.Statx_t
	err := unix.Statx(parent, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC,
		unix.STATX_TYPE, &st)
	switch {
	case err == unix.ENOENT:
		return "", nil
	case err == unix.ENOSYS || err == unix.EPERM || (err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0):
		return "", errNoMountRoot
	case err != nil:
		return "", errors.WithStack(&os.PathError{Op: "statx", Path: path, Err: err})
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return path, nil
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return "", nil
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return "", nil
	}
	if err != nil {
		return "", errors.WithStack(&os.PathError{Op: "open", Path: path, Err: err})
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	return mountInDir(dir, path, except)
}

func mountInDir(dir *os.File, path, except string) (string, error) {
	names, err := dir.Readdirnames(-1)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", errors.WithStack(err)
	}
	for _, name := range names {
		child := filepath.Join(path, name)
		if child == except {
			continue
		}
		if mounted, err := mountAt(int(dir.Fd()), name, child, except); err != nil || mounted != "" {
			return mounted, err
		}
	}
	return "", nil
}

// rmdir is the system call alone: os.Remove would also remove a file that took the directory's place.
func rmdir(path string) error { return retried(func() error { return unix.Rmdir(path) }) }

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return errors.WithStack(&os.PathError{Op: op, Path: path, Err: err})
}
