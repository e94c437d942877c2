// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package conformance holds this project's daemon to other people's suites, beside stock containerd of the same
// version.
//
// What every suite is promised:
//
//   - It runs twice, against stock and against ours, each time in a fresh box (see package box) with the same shim,
//     runc and programs; only the containerd in PATH differs.
//   - It runs as root of what looks like a node of its own: paths such as /run/containerd, /var/lib, /etc and /tmp
//     are its own and begin empty or as the machine has them, and nothing that it does is seen outside or outlives
//     it. The box says what is not private.
//   - The registries that it knows answer under their names, over HTTPS that everything inside trusts, with images
//     made on the spot. There is no other network.
//   - Whatever the suites' authors built is used as it is: modules in their own trees, pinned with checksum, and
//     packages that are unpacked and never installed.
//   - A test that fails with either side, or whose outcome differs between them, fails the run unless the list in
//     known/ has it with the reason. A listed test that does better than its list fails the run as well.
package conformance
