// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ledger is what is remembered of one instance beyond the life of the daemon: its record, the exits that are
// known, and who was told.
//
// # What it owns
//
// A [Ledger] owns the record as the bundle has it ([bundle.Record]) and is the only writer of its file, once it is made
// and until it is sealed. It owns the exits of init and of the execs, which of them subscribers were told and are to be
// told again, what the shim has told before it was known whose it is, the changes of the status that are under way, and
// the Waits to wake. A [Desk] is what the ledgers of one daemon share.
//
// # What it never does
//
// It sends nothing to a shim, publishes no event and ends no process. It has no pointer to an instance or a manager:
// what it needs of its instance is the two methods of a [Keeper], and of that one's life a state, which it is given.
// When something is to be told it has the [Desk] see to that; what was told is for that one to write down here.
//
// # Invariants
//
//   - The exit that is learnt first stays, from whatever source it came: State, Wait, Delete and events agree.
//   - What is told is on record before it is told, and that it was told is on record after: a crash in between repeats
//     the same words ([Ledger.CountTry], [Ledger.MarkTold]).
//   - An event with another pid than the process's is an earlier one's. One that comes before the pid is known for good
//     is kept until it is.
//   - A record that cannot be written is tried again until it is written, sealed or without a bundle.
//   - Nothing is written once the record is sealed: the bundle may be a successor's. Nor is what is written already.
//   - A pid is signalled only if it is known to be a process of this machine that descends from the shim.
//
// # Locks
//
// Ledger.mu guards all that is remembered. No other lock is taken under it, and nothing is read, written, called or
// waited for. Ledger.saving is above it, and the instance's lock is between the two: it is held over the write of the
// file, which it orders, and over [Keeper.Bundle].
//
// # In one step with the state
//
// The instance's lock is above Ledger.mu, so that a state and the record can be judged, or changed, in one step: the
// instance holds its own lock over the call. Where a state is asked for it has to, and so it has where the state
// changes with the record. These places are, and why they are (TestTwoStepsInPlaceOfOne shows what goes wrong
// otherwise, TestOneStep of package manager holds the callers to it):
//
//   - [Ledger.HearExit] and [Ledger.HearDelete] against [Ledger.Created]: what is heard while the task is being created
//     is kept, what is heard of a created one is held against its pid. Between the two it would be dropped.
//   - [Ledger.BeginSpeaking] against the claim of a Delete, which is followed by [Ledger.AwaitSilence]: one who speaks
//     has begun before the claim and is waited for, or sees it and does not speak.
//   - [Ledger.ReplayDue] and [Ledger.RepeatDue] against a Delete that gives the task back, which is followed by
//     [Ledger.TellLater]: one who gives up since the task is being deleted has done so before that, which begins anew,
//     or sees the task given back.
//   - [Ledger.Answered] against a death: a task that is dead was created, if its shim has ever known it.
package ledger
