// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package warm

// readSurroundings has nothing to tell: there is no pool, see the manager.
func readSurroundings() string { return "" }
