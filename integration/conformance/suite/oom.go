// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"golang.org/x/sys/unix"
)

// CannotLowerOOM tells whether root lacks the capability to lower a process's OOM score, as on some rented machines.
// CRI asks for that for each container.
func CannotLowerOOM() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0
}
