// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// errNoInstance is the answer for an id that nobody knows, or that is not yet, or no longer, a task.
func errNoInstance(k Kind, id string) error {
	return errors.Wrapf(errdefs.ErrNotFound, "%s %s", k, id)
}

// errReserved is the answer to a create whose id still belongs to an earlier instance.
func errReserved(i *Instance) error {
	st, left := i.status()
	if left != nil {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s %s is still being cleaned up: %v", i.kind, i.id, left)
	}
	return errors.Wrapf(errdefs.ErrAlreadyExists, "%s %s (%s)", i.kind, i.id, st)
}
