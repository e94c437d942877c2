// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package bundle

import (
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openFlags keep an open from following a link and from waiting for the other end of a fifo.
const openFlags = unix.O_NOFOLLOW | unix.O_NONBLOCK

// replaceFile writes a file beside path and renames it. A create writes half a dozen files so, which is why it makes the
// system's calls itself: package os makes as many again, to offer a file to the poller, which takes none.
func replaceFile(path string, data []byte, perm fs.FileMode) (err error) {
	fd, temp, err := createBeside(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = unix.Unlink(temp)
		}
	}()
	err = writeAll(fd, data)
	if err == nil {
		// The mode of an open would be cut by the daemon's umask.
		err = unix.Fchmod(fd, uint32(perm))
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: temp, Err: err}
	}
	// Not os.Rename, which looks at what is there first.
	if err = retried(func() error { return unix.Rename(temp, path) }); err != nil {
		return &os.LinkError{Op: "rename", Old: temp, New: path, Err: err}
	}
	return nil
}

// overwriteFile writes a file that need not be replaced in one step, since no one reads it yet.
func overwriteFile(path string, data []byte, perm fs.FileMode) error {
	var fd int
	err := retried(func() (err error) {
		fd, err = unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, uint32(perm))
		return err
	})
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	err = writeAll(fd, data)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// retried calls again what a signal has interrupted.
func retried(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// createBeside makes a new hidden file in the directory of path.
func createBeside(path string) (fd int, temp string, err error) {
	const tries = 10000
	slash := strings.LastIndexByte(path, '/') + 1
	for range tries {
		temp = path[:slash] + "." + path[slash:] + "." + strconv.FormatUint(uint64(rand.Uint32()), 10)
		fd, err = unix.Open(temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		switch err {
		case nil:
			return fd, temp, nil
		case unix.EEXIST, unix.EINTR:
		default:
			return -1, "", &fs.PathError{Op: "create", Path: temp, Err: err}
		}
	}
	return -1, "", &fs.PathError{Op: "create", Path: temp, Err: err}
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return io.ErrShortWrite
		default:
			data = data[n:]
		}
	}
	return nil
}
