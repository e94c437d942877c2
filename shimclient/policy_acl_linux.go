// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import "golang.org/x/sys/unix"

// hasAccessList tells whether a file has a POSIX access list besides its mode.
func hasAccessList(path string) (bool, error) {
	_, err := unix.Lgetxattr(path, "system.posix_acl_access", nil)
	switch err {
	case nil:
		return true, nil
	case unix.ENODATA, unix.EOPNOTSUPP:
		return false, nil
	}
	return false, err
}
