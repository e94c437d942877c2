// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

// Names of the timeouts in containerd's [timeouts] section, as stock containerd calls them. They are read at each use.
const (
	// TimeoutLoad bounds how long a call waits for the connection to a shim, and how long a shim that can only be
	// judged by its connection (vsock, not launched by us) may stay unreachable before it counts as dead.
	TimeoutLoad = "io.containerd.timeout.shim.load"
	// TimeoutCleanup bounds one attempt to clean up, and how long a create waits for an id that is still being cleaned.
	TimeoutCleanup = "io.containerd.timeout.shim.cleanup"
	// TimeoutShutdown bounds the Shutdown call and the wait for the process to go after it.
	TimeoutShutdown = "io.containerd.timeout.shim.shutdown"
)
