// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

var (
	// ErrDead is returned by calls on a shim process that is proven dead. Its class is NotFound: containerd's clients
	// (CRI, moby) take NotFound from State, Kill and Delete for "already gone".
	ErrDead = errors.Wrap(errdefs.ErrNotFound, "the shim process is dead")

	// ErrClosing is returned for a join of a process whose last instance has just left it.
	ErrClosing = errors.Wrap(errdefs.ErrUnavailable, "the shim process is shutting down")

	// ErrStranger: what listens at the address is not the process on record.
	ErrStranger = errors.Wrap(errdefs.ErrNotFound, "another process listens at the address that it should have")
)

// Unavailable says since when a shim cannot be used and what can be done about it.
func Unavailable(id string, since time.Time, what string) error {
	return errors.Wrapf(errdefs.ErrUnavailable,
		"shim of %s %s since %s (%s ago); its containers go on, calls work again as soon as it answers",
		id, what, since.UTC().Format(time.RFC3339), time.Since(since).Round(time.Second))
}

// errLost says why a process cannot be reached at all, and what becomes of what it serves.
func errLost(why error) error {
	return errors.Wrapf(errdefs.ErrUnavailable, "cannot tell how to reach the shim, which runs, as do its containers; "+
		"what is left is cleaned up once it has ended: %v", why)
}
