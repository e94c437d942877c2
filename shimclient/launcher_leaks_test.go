// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"runtime"
	"strings"
	"testing"
)

// noLaunchLeaks checks, when the test is done, that it has left no descriptor
// and no goroutine of this package.
func noLaunchLeaks(t *testing.T) {
	t.Helper()
	fds, routines := openFiles(), len(launchRoutines())
	t.Cleanup(func() {
		eventually(t, func() bool { return openFiles() <= fds }, "descriptors: %d before, %d now", fds, openFiles())
		eventually(t, func() bool { return len(launchRoutines()) <= routines },
			"goroutines left:\n%s", strings.Join(launchRoutines(), "\n\n"))
	})
}

// launchRoutines are the goroutines that this package has started, and os/exec
// for it.
func launchRoutines() []string {
	buf := make([]byte, 16<<20)
	var found []string
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "shimyard/shimclient.") && !strings.Contains(stack, "testing.tRunner") ||
			strings.Contains(stack, "os/exec.") {
			found = append(found, stack)
		}
	}
	return found
}
