// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

// LogPath is where the shim of this bundle writes its log: a named pipe that the shim makes.
func (b *Bundle) LogPath() string {
	return `\\.\pipe\containerd-shim-` + b.Namespace + "-" + b.ID + "-" + logFile
}
