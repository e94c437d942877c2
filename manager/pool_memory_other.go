// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package manager

// readMachineMemory has nothing to tell: there is no pool, see poolSpecFor.
func readMachineMemory() machineMemory { return machineMemory{} }
