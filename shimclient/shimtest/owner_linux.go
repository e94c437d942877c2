// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"encoding/json"
	"os"
	"time"
)

// ownerInterval is how often a process of a fake looks whether the test process lives.
const ownerInterval = 500 * time.Millisecond

// ownerGone says whether the test process that made an install has ended.
func ownerGone(home string) bool {
	data, err := os.ReadFile(ownerPath(home))
	if err != nil {
		return true // the install was removed
	}
	var o owner
	if json.Unmarshal(data, &o) != nil {
		return true
	}
	start, err := startTime(o.Pid)
	return err != nil || start != o.Start
}
