// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

var (
	// errShimDead is returned by calls on a shim process that is proven dead. Its class is NotFound: containerd's clients (CRI, moby)
	// take NotFound from State, Kill and Delete for "already gone".
	errShimDead = errors.Wrap(errdefs.ErrNotFound, "the shim process is dead")

	// errClosing is returned to whoever wants to join a process whose last instance has just left it.
	errClosing = errors.Wrap(errdefs.ErrUnavailable, "the shim process is shutting down")
)

// errNoInstance is the answer for an id that nobody knows, or that is not yet, or no longer, a task.
func errNoInstance(k Kind, id string) error {
	return errors.Wrapf(errdefs.ErrNotFound, "%s %s", k, id)
}

// errUnavailable says since when a shim cannot be used and what can be done about it.
func errUnavailable(id string, since time.Time, what string) error {
	return errors.Wrapf(errdefs.ErrUnavailable,
		"shim of %s %s since %s (%s ago); its containers go on, calls work again as soon as it answers",
		id, what, since.UTC().Format(time.RFC3339), time.Since(since).Round(time.Second))
}

// errReserved is the answer to a create whose id still belongs to an earlier instance.
func errReserved(i *Instance) error {
	st, left := i.status()
	if left != nil {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s %s is still being cleaned up: %v", i.kind, i.id, left)
	}
	return errors.Wrapf(errdefs.ErrAlreadyExists, "%s %s (%s)", i.kind, i.id, st)
}
