// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package bundle

import (
	"os"

	"golang.org/x/sys/unix"
)

// renameOver stands in for a rename that replaces nothing, where the system or the file system has none: it makes the
// place its own first. A crash in between leaves an empty directory. os.Rename would not replace that.
func renameOver(from, to string) error {
	if err := os.Mkdir(to, bundlePerm); err != nil {
		return err
	}
	if err := unix.Rename(from, to); err != nil {
		_ = os.Remove(to)
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
