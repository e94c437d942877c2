// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// emptyRounds is how often removeTree reads a directory anew into which something is put while it is being removed.
const emptyRounds = 8

// removeTree removes path and all below it. It follows no link and enters no mount: each directory is opened relative
// to the one above, in a way that fails at either. It goes on after an error and returns the first. What is gone
// already is no error.
func removeTree(path string) error {
	return removeIn(filepath.Dir(path), filepath.Base(path))
}

// removeIn is removeTree of entries of one directory, up to the first that cannot be removed.
func removeIn(dir string, names ...string) error {
	parent, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return errors.WithStack(&fs.PathError{Op: "open", Path: dir, Err: err})
	}
	defer unix.Close(parent)
	for _, name := range names {
		if err := removeAt(parent, name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// removeAt removes the entry name of the directory parent; path is for messages.
func removeAt(parent int, name, path string) error {
	uerr := unix.Unlinkat(parent, name, 0)
	switch uerr {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR, unix.EPERM:
	default:
		return removeError("unlink", path, uerr)
	}
	for range emptyRounds {
		dir, err := openDirAt(parent, name, path)
		switch err {
		case nil:
		case unix.ENOENT:
			return nil
		case unix.ENOTDIR, unix.ELOOP:
			return removeError("unlink", path, uerr)
		default:
			return removeError("open", path, err)
		}
		err = emptyDir(dir, path)
		dir.Close()
		if err != nil {
			return err
		}
		switch err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err {
		case nil, unix.ENOENT:
			return nil
		case unix.ENOTEMPTY, unix.EEXIST:
		default:
			return removeError("rmdir", path, err)
		}
	}
	return removeError("rmdir", path, unix.ENOTEMPTY)
}

func emptyDir(dir *os.File, path string) error {
	names, first := dir.Readdirnames(-1)
	if errors.Is(first, fs.ErrNotExist) {
		first = nil
	}
	for _, name := range names {
		if err := removeAt(int(dir.Fd()), name, filepath.Join(path, name)); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// removeError names the mount where the kernel's word for it is "busy" or "another device".
func removeError(op, path string, err error) error {
	if err == unix.EBUSY || err == unix.EXDEV {
		return errors.Wrapf(ErrMounted, "%s is a mount point; unmount it", path)
	}
	return errors.WithStack(&fs.PathError{Op: op, Path: path, Err: err})
}

// openDirAt opens the directory name in parent, and fails with EXDEV when it is a mount point, with ENOTDIR or ELOOP
// when it is none.
func openDirAt(parent int, name, path string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{Flags: flags,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS})
	if err == unix.ENOSYS || err == unix.EPERM {
		fd, err = openSameDevice(parent, name, flags)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openSameDevice stands in on kernels before 5.6 and where a filter forbids openat2. It does not notice a bind mount
// from the same file system; mountInside, which is asked first, does.
func openSameDevice(parent int, name string, flags int) (int, error) {
	fd, err := unix.Openat(parent, name, flags, 0)
	if err != nil {
		return -1, err
	}
	var above, here unix.Stat_t
	if err := unix.Fstat(parent, &above); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if err := unix.Fstat(fd, &here); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if above.Dev != here.Dev {
		unix.Close(fd)
		return -1, unix.EXDEV
	}
	return fd, nil
}
