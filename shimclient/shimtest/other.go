// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package shimtest

import (
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// Dispatch only notes that it was called: there are no fake shims here.
func Dispatch() { dispatched.Store(true) }

func tempInMemory() {}

// Stop is not possible here.
func (p Proc) Stop() error { return errors.Wrap(errdefs.ErrNotImplemented, "stopping a process") }

// Cont is not possible here.
func (p Proc) Cont() error { return errors.Wrap(errdefs.ErrNotImplemented, "continuing a process") }

func procStat(int) (state string, start uint64, err error) {
	return "", 0, errors.Wrap(errdefs.ErrNotImplemented, "reading the state of a process")
}
