// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import "time"

const (
	// patience is for how long something is waited for that has to come, before a test is failed instead of hung.
	patience = 30 * time.Second
	// settle is for how long something is waited for that is about to end, at the end of a test.
	settle = 5 * time.Second
)
