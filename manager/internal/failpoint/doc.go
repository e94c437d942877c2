// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package failpoint ends the daemon between two durable steps, for the tests that see what the next daemon finds. It
// does something only in a build with the tag failpoints; integration's failpoint tests build such a daemon, and fail
// for a name in the source that none of their scenarios reaches.
package failpoint
