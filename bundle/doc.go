// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bundle owns the directories of an instance on disk: its bundle, below the state directory, and its work
// directory, below the root directory. It is the only package that knows a file name or a format in them, and the only
// one that removes them.
//
// What it never does: no RPC, no exec, no signal, no connection, no decision on whether an instance is dead. It reads
// and writes only on the word of its caller. The files that a shim owns (address, s, init.pid, shim.pid, runtime,
// options.json, exit.json) are read, never written, unless they are gone or damaged (WriteRuncOptions). It holds no
// state of its own: what it knows is what is on disk.
//
// # Layout
//
//	STATE/NAMESPACE/ID/            the bundle: 0700, or 0710 and the remapped gid under a user namespace
//	    config.json                the OCI spec, byte for byte as the client sent it
//	    rootfs/                    0711, where the shim mounts
//	    work                       link to ROOT/NAMESPACE/ID
//	    log                        fifo for the shim's log
//	    shim-binary-path           0600
//	    bootstrap.json             0644, the shim's reply to `start`, as encoding/json writes the message
//	    sandbox                    0600, the sandbox that a joined task belongs to
//	    shimyard.json              0600, our own record; other daemons ignore it
//	ROOT/NAMESPACE/ID/             the work directory, 0711
//	STATE/NAMESPACE/.-rm.ID.RANDOM what is being removed (below ROOT too); swept at boot
//	STATE/NAMESPACE/.ID            the same, as containerd's own runtime leaves it; swept at boot
//	STATE/._RANDOM/                where the directory of a warm shim waits, 0700: its config.json ("{}"), log, s, bootstrap.json, and
//	    warm.json                  0600, our own record of it
//
// The directory of a warm shim becomes the bundle of the task that the shim serves, warm.json with it: it is assembled
// where it waits and renamed to the bundle's place, and goes the other way when the task is deleted (see Warm).
//
// The layout, the names and the modes are a contract with containerd's own runtime, which must be able to take over
// every bundle at any time, and with any other reader. A hidden name is skipped by it; a name of ours can never
// be ".ID" of any valid id, which it would need free for its own removal.
//
// # Invariants
//
//   - A record is replaced as a whole or not at all: a reader never sees half of one.
//   - A Create that fails leaves neither bundle nor work directory. The namespace's directory stays: another instance
//     may be on its way in.
//   - A removal cut at any point leaves something that the next Remove, the next Create of that id or the Sweep at boot
//     deals with.
//   - A removal never crosses a mount and never follows a link. Only what is mounted at or below rootfs is unmounted,
//     there alone (not at the peers of a shared mount), and only when no process uses it.
//   - rootfs is removed by rmdir alone. What is in it may be user data; then the bundle stays as it is, with all
//     its records.
//   - A file in the bundle goes only after the bundle has left its place, so that a bundle that can be listed is whole.
//     One that was a warm shim's directory also appears whole.
//   - One Bundle removes one bundle, once: after its Remove it leaves a successor of the same id alone.
//
// # Concurrency
//
// All methods may be called from several goroutines. Operations on different ids do not disturb each other, and Remove
// copes with files that vanish under it. Create, Remove and the records of one id want one caller at a time, whose job
// that is: the owner of the instance. Sweep runs before the first Create.
package bundle
