// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package shimtest is a fake shim for tests: the test binary itself, executed again under the name of a shim (or, where
// it has the race detector, the program fakeshim, which starts four times as fast). It does what real shims do (listens
// where they listen, runs real processes as containers, publishes their events, leaves their files) and, on command,
// what real shims will not do on command: speak an older protocol, stall, lie, or die between any two steps. It knows
// nothing of the code that it is used to test.
//
// # Use
//
//	func TestMain(m *testing.M) { shimtest.Main(m) } // or shimtest.Dispatch() before all else in a TestMain of your own
//
//	func TestSomething(t *testing.T) {
//		shimtest.CheckLeaks(t)          // first, so that it looks last
//		events := shimtest.NewEvents(t) // its Address is for TTRPC_ADDRESS; needless with a real daemon
//		shim := shimtest.Install(t, shimtest.Scenario{})
//		// … shim.Path is the runtime, as an absolute path …
//		shim.Update(func(s *shimtest.Scenario) {
//			s.Rules = []shimtest.Rule{{Method: "State", Hang: true}}
//		})
//		require.Equal(t, 1, shim.Count(shimtest.KindExec, "start"))
//	}
//
// Install fails the test at its end if processes of the fake or sockets in its own directory are left
// (AllowLeftovers for those that leave some on purpose), and removes them. When the test process dies without its
// cleanups, the processes of the fake end by themselves within a second, unless they are stopped.
//
// # What is on disk
//
// Everything of an install is in Shim.Home: the binary (a copy, so that each install has a file identity of its own;
// Replace makes another), scenario.json, trace.jsonl, the counters of "the first N times", and s for the sockets.
// Scenario.SocketDir, or the socket_dir of BootstrapParams, puts sockets elsewhere; then they are the test's to check.
// Never is anything put in /run/containerd, whatever the generation.
//
// # Which start protocol
//
// The test binary contains the name of the bootstrap protocol's package, so a launcher that looks for it takes the
// fake for a new shim. WithoutMarker makes a binary without it, which a launcher takes for an old one; WithScript makes
// a shell script, which tells nothing. What the fake then understands is for Scenario.Generation alone. A test that
// wants a protocol whatever the file says configures the launcher so.
//
// # Containers
//
// A container runs process.args of its bundle's config.json, else Scenario.Init, as a real process; so does an exec
// with the args of its spec. Signals do to it what they do to any process. The commands:
//
//	sleep [SECONDS]        for ever without a number; so does every command that is not listed
//	exit CODE
//	exit-after MS CODE
//	die SIGNAL             is ended by a signal (its name without SIG)
//	ignore [SIGNAL...]     ignores them (TERM), and sleeps
//	echo WORDS...          to stdout
//	cat                    stdin to stdout
//	missing                makes Create fail, as a binary does that is not in the container
//
// The process waits between Create and Start. A Create with a checkpoint has pid 0 until Start. There are no mounts, no
// namespaces and no terminals. Generation Bootstrap writes exit.json; all write init.pid.
//
// # Faults
//
// StartFaults, DeleteFaults and InfoAnswer are for the execs, a Rule is for an RPC, an EventRule for an event.
// A hang lasts until the scenario no longer asks for it, and then the work is done after all, as with a shim that was
// stalled; Proc.Stop and Proc.Cont do the same by signals to a whole process. For a version downgrade, let the reply
// say 3 (the default) and serve Versions 2 only.
package shimtest
