// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

var (
	// ErrNotEmpty is in the chain when Remove found something in rootfs that is not mounted there. The bundle stays,
	// whole; a later Remove succeeds once rootfs is empty. Class FailedPrecondition.
	ErrNotEmpty = errors.Wrap(errdefs.ErrFailedPrecondition, "rootfs is not empty")

	// ErrMounted is in the chain when something is mounted where removing would have to cross it. Nothing was removed
	// yet if the mount was there when the removal began. Class FailedPrecondition.
	ErrMounted = errors.Wrap(errdefs.ErrFailedPrecondition, "something is mounted inside")

	// ErrInUse is in the chain when a process still uses a file system that is mounted at or below rootfs, which is
	// named with the process. The mount and the bundle stay; a later Remove succeeds once no process uses it. Class
	// FailedPrecondition.
	ErrInUse = errors.Wrap(errdefs.ErrFailedPrecondition, "a mounted file system is in use")

	// ErrNotRegular is in the chain when a file was to be read and is a link, a fifo, or the like. Class
	// FailedPrecondition.
	ErrNotRegular = errors.Wrap(errdefs.ErrFailedPrecondition, "not a regular file")

	// ErrForeign is in the chain when a record is there and cannot be understood: damaged, of a newer version, or not a
	// file at all. What it belongs to is not ours to judge. Class FailedPrecondition.
	ErrForeign = errors.Wrap(errdefs.ErrFailedPrecondition, "not a record that can be used")
)
