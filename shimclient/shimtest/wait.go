// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import "time"

// patience is for how long something is waited for that has to come, before a test is failed instead of hung.
const patience = time.Minute

// settle is for how long something is waited for that is about to end, at the end of a test. Tests of what is left then
// have less.
var settle = patience
