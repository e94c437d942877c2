// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package bundle

import (
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/pkg/errors"
)

// removeTree removes path and all below it. It follows no link, and it refuses when something is mounted in it.
func removeTree(path string) error {
	if err := refuseMounts(path, ""); err != nil {
		return err
	}
	return errors.WithStack(os.RemoveAll(path))
}

// removeIn is removeTree of entries of one directory, up to the first that cannot be removed.
func removeIn(dir string, names ...string) error {
	for _, name := range names {
		if err := removeTree(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// mountInside returns a mount point at or below path, "" when there is none. except is not looked into.
func mountInside(path, except string) (string, error) {
	return mountInTable(path, except)
}

// unmountAndRmdir removes an empty directory, after unmounting what is at or below it.
func unmountAndRmdir(path string) error {
	if err := mount.UnmountRecursive(path, 0); err != nil {
		return errors.Wrapf(err, "cannot unmount %s", path)
	}
	return errors.WithStack(rmdir(path))
}

// isolate does nothing: mounts have no peers here.
func isolate(string) error { return nil }
