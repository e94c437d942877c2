// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package warm keeps the account of warm shims: shim processes that were started ahead, for no container in particular.
//
// # What it owns
//
// Which warm shims wait for a task, which create may have one, and how many are kept. An [Account] has one [Entry] for
// each warm shim and one shelf for each key: the digest of all that a shim gets at its start and cannot be given later
// ([Keys]). It owns the ceiling of idle shims, the rule about the machine's memory, how many spares the demand asks
// for, and for how long an idle shim stays.
//
// # What it never does
//
// It has no process, no connection and no file in hand, and never learns what a shim is: an entry carries the owner's
// own handle, and the account gives it back. What is to be done with a shim (launch it, end it, measure it) is a
// function of the owner's, see [Config].
//
// # Invariants
//
//   - A shim has one [State], changed by one function along one table. Retired is final: a shim that was once refused
//     a task, or did once not do as it should, is given to no task again.
//   - Idle shims, shims about to become idle and spares that are being started have a place each, and there are never
//     more places than [Config].Limit.
//   - A task is given a shim with its own key, never one that differs in anything.
//   - A shim that is idle, and has to go, is handed to [Config].End exactly once by the account.
//
// # Locks
//
// Account.mu guards all entries and shelves; it is held for no longer than it takes to look and to change. The owner's
// functions are called without it, but for two: [Config].Retired, which only counts, and the argument of
// [Account.Back], which takes the instance out of the process in the same step as the account does. Keys and Refused
// have a lock of their own, under which nothing else is done.
package warm
