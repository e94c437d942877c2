// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package manager

// readSurroundings has nothing to tell: there is no pool, see poolSpecFor.
func readSurroundings() string { return "" }
