// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !failpoints

package failpoint

// Here marks a place between two durable steps, at which tests end the daemon. Outside of such tests it is nothing.
func Here(string) {}
