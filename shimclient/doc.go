// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package shimclient is everything about one shim process: which binary serves
// a runtime ([Resolver]), how it is launched, deleted and asked about itself
// ([Launcher]), what it answers ([ParseReply]), how it is reached ([Dial],
// [Conn], [Task]), and whether it lives ([ProcessID]).
//
// It knows neither bundles nor instances: a directory is a working directory
// here, and an id is a word on a command line. It never decides that a
// container is dead, and it never removes a directory.
//
// Invariants:
//   - A launch that fails leaves nothing of itself: no process that carries its
//     token, no socket file without a listener, no descriptor, no goroutine.
//   - No signal is sent to a pid whose start time has not been compared after
//     the process was pinned (by a pidfd, or as a child not yet waited for).
//   - A socket file is removed only when connecting to it is refused.
//   - What a shim says is parsed strictly and with a bound; what it says on
//     stderr is never taken for a reply.
//   - Errors are classified once, here, with containerd's errdefs; the text of
//     the shim passes through unchanged.
package shimclient
