// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package shimproc

import (
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// DumpStacks has no signal for it here.
func DumpStacks(shimclient.ProcessID) error {
	return errors.Wrap(errdefs.ErrNotImplemented, "dumping stacks by a signal")
}
