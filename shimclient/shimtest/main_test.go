// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"os"
	"testing"
)

// TestMain has the fake execute the test binary itself, so that the race detector looks at the fake as well.
func TestMain(m *testing.M) {
	Dispatch()
	tempInMemory()
	os.Exit(m.Run())
}
