// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import "time"

// Usage is what the kernel says that a process does and uses.
type Usage struct {
	// State as in ps: "R", "S", "D", "T", "Z".
	State string
	// RSS is the resident memory in bytes.
	RSS uint64
	// CPU is the time used since the process began, of all its threads.
	CPU time.Duration
	// Deleted: the file that it runs was removed or replaced.
	Deleted bool
}
