// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package shimproc is one shim process and the way to it: its one connection, the breaker that keeps calls from a
// shim that does not answer, its end, and the proof of its death.
//
// It owns the connections, the shims' logs, one goroutine for each process that connects and watches, and the map of
// processes by address (Registry). It does not know who is behind a process: it sees its members as an interface
// (Member), and what keeps a process without members as another (Keeper). It reads no bundle, writes no file and
// publishes no event.
//
// What holds:
//
//   - One connection for each process, however many members. A lost connection is made anew; it is no proof of
//     death.
//   - A process is dead when that is proven (see Process.IsDead), and then for good. Each member is told once
//     (Config.OnDied), and no call goes out any more.
//   - No process is joined that is dead, or whose last member is leaving.
//   - A Wait, or any other call, that has been sent stays on its connection until that is lost, the process ends,
//     or its context does: the end of the daemon closes no connection of a living shim.
//   - A shim that is silent is left alone unless the config says otherwise, and no process is killed on a guess.
//
// # Locks
//
// Registry.mu, then Process.mu, then a member's or a keeper's own (taken in Enter, Facts, Take, StartID and Runtime), in
// this order. The hooks of the Config and Member.Runs are called with none held. Under none of the locks
// is a call sent or waited for.
package shimproc
