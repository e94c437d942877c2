// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"os"
	"sync/atomic"
	"testing"
)

const (
	shimPrefix = "containerd-shim-"
	guestName  = "shimtest-guest"
)

var dispatched atomic.Bool

// What a guest gets of an environment, besides PATH and GORACE: nothing of the shim's own, as a container does not.
const (
	homeEnv        = "SHIMTEST_HOME"
	guestIDEnv     = "SHIMTEST_ID"
	guestBundleEnv = "SHIMTEST_BUNDLE"
)

// Main is a TestMain that does nothing but Dispatch and run the tests. Where these have the race detector, what they
// install is built without it. Their directories are on a tmpfs where there is one, as a daemon's state is, unless
// TMPDIR is set.
func Main(m *testing.M) {
	Dispatch()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	tempInMemory()
	if raceDetector {
		installed = newLean()
		defer installed.remove()
	}
	return m.Run()
}
