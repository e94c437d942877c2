// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import "path/filepath"

// owner is the test process that an install belongs to.
type owner struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"`
}

func ownerPath(home string) string { return filepath.Join(home, "owner.json") }
