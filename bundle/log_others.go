// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package bundle

// LogPath is where the shim of this bundle writes its log: a fifo.
func (b *Bundle) LogPath() string {
	return b.file(logFile)
}
