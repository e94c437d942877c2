// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

// checkOwners is not for Windows, where access lists decide.
func checkOwners(string) error { return nil }
