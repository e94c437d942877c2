// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package bundle

import (
	"os"

	"github.com/pkg/errors"
)

// setBundleMode opens the bundle for the remapped root group, whose processes must reach rootfs through it.
func setBundleMode(path string, gid uint32) error {
	perm := bundlePerm
	if gid != 0 {
		if err := os.Chown(path, -1, int(gid)); err != nil {
			return errors.WithStack(err)
		}
		perm = remappedPerm
	}
	return errors.WithStack(os.Chmod(path, perm))
}

// resetBundleMode makes a directory that a bundle's mode was given to what a new one is.
func resetBundleMode(path string) error {
	if err := os.Chmod(path, bundlePerm); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Chown(path, -1, os.Getegid()))
}
