// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package shimclient

// awaitExit cannot wait here without reaping.
func awaitExit(int) bool { return false }
