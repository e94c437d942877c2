// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package shimproc

import (
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// DumpStacks makes a shim write the stacks of its goroutines to its log, as runc's shim and all that are made with
// containerd's package do at SIGUSR1. FailedPrecondition for a shim that has no handler for the signal, as Rust's
// have not: it would end.
func DumpStacks(pid shimclient.ProcessID) error {
	caught, err := pid.Catches(syscall.SIGUSR1)
	if err != nil {
		return err
	}
	if !caught {
		return errors.Wrapf(errdefs.ErrFailedPrecondition,
			"the shim (pid %d) does not catch SIGUSR1, which would end it", pid.Pid)
	}
	return pid.Signal(syscall.SIGUSR1)
}
