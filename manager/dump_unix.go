// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package manager

import (
	"syscall"

	"github.com/shimyard/shimyard/shimclient"
)

// dumpStacks makes a shim write the stacks of its goroutines to its log.
func dumpStacks(pid shimclient.ProcessID) error { return pid.Signal(syscall.SIGUSR1) }
