// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix && !linux

package bundle

import (
	"os"

	"golang.org/x/sys/unix"
)

// rmdir is the system call alone: os.Remove would also remove a file that took the directory's place.
func rmdir(path string) error {
	if err := unix.Rmdir(path); err != nil {
		return &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return nil
}
