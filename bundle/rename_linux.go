// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"

	"golang.org/x/sys/unix"
)

// renameNoReplace renames a directory, in one step, unless there is something in the new place: fs.ErrExist.
func renameNoReplace(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch err {
	case nil:
		return nil
	case unix.ENOSYS, unix.EINVAL: // a kernel, or a file system, that does not know the flag
		return renameOver(from, to)
	}
	return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
}
