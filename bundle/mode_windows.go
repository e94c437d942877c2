// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

// setBundleMode does nothing: there are no groups and modes of this kind.
func setBundleMode(string, uint32) error {
	return nil
}

func resetBundleMode(string) error { return nil }
