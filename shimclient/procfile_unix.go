// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// readSmall reads a file of the kernel's that one read returns whole, as those of /proc are that are made anew at each
// reading. Package os would take three times the calls for the same: it offers the file to the poller, which takes no
// such file, and reads on to the end. Errors are those of os.ReadFile.
func readSmall(path string) ([]byte, error) {
	fd, err := retried(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	data := make([]byte, 0, 1024)
	for {
		room := data[len(data):cap(data)]
		n, err := retried(func() (int, error) { return unix.Read(fd, room) })
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		data = data[:len(data)+n]
		if n < len(room) {
			return data, nil
		}
		data = append(data, 0)[:len(data)]
	}
}

// retried calls again what a signal has interrupted.
func retried(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
