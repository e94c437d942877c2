// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package manager keeps every shim process of a containerd daemon in hand, from its launch until nothing of it is left.
//
// # What it owns
//
// A [ShimManager] owns the map of instances with its lock, the shim processes by address, the context and the
// goroutines that all background work runs in. A Process owns one connection to one shim process, the copier of its
// log, one goroutine that watches the connection, and the set of instances that the process serves. An Instance ties
// one (namespace, id), a task or a sandbox, to a bundle and a process, and owns the bundle. [TaskManager] shows tasks
// as runtime.Task, [SandboxController] shows sandboxes as sandbox.Controller; both share one id space. The pool
// launches warm shims (processes that were started for no container in particular), gives them to tasks and ends them;
// package warm keeps the account of which wait and which may be given. The processes themselves are the manager's like
// all others.
//
// # Invariants
//
//   - Nothing but proof of death (see verdict.go) ends a shim that has a task or removes its bundle. No error of a call
//     is a proof.
//   - A Wait does not fail because a shim stalls, a connection is lost, or the daemon stops.
//   - A shim that served one task serves another only if its whole start would have been the same and all that it did
//     was in order.
//   - Nothing is begun with any process that an earlier daemon left before the records of all instances are read: until
//     then it is not known which others are behind it.
//   - Launch, join and restore end in the same constructor of a Process; a failed launch, a launch that a crash cut
//     short and a dead shim end in the same cleaning.
//   - Removal compares identity: a late callback of an earlier instance never evicts its successor under the same id.
//   - No lock is held across an RPC, an exec, a publish or file IO. The exceptions are Ledger.saving and
//     Instance.reading, which order the writes of one record file and its first reading, and warmShim.clearing, which
//     orders the removals of one directory; they guard nothing else.
//   - An instance leaves the map last, when nothing of it is left; until then its id is reserved. A shim that has said
//     yes to its Shutdown and lingers is still something of it. It has no task any more; one whose pid is verified is
//     ended with SIGKILL after some cleanup timeouts (see clean.go).
package manager
