// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire is what the host and the agent in the virtual machine say to each other over its second serial port:
// one JSON object a line, a request at a time. The first serial port is the console, which getty and the kernel write
// to.
package wire

// Library is the file in the machine that is sourced before each script, where it is there.
const Library = "/run/vm/lib.sh"

// Request asks the agent to run a script with bash.
type Request struct {
	// ID is repeated in the answer: what is left in the line of an earlier, given up request is told from it.
	ID int `json:"id"`
	// Script is run with `bash -euo pipefail`, after the library.
	Script string `json:"script"`
	// Seconds is how long the script may run before it is killed, with all that it started.
	Seconds int `json:"seconds"`
}

// Reply is the answer to a request, or, with ID 0, the agent's word that it is up.
type Reply struct {
	ID int `json:"id"`
	// Boot is the id that the kernel gave this boot.
	Boot string `json:"boot,omitempty"`
	// Exit is the script's exit code, -1 if a signal ended it.
	Exit int `json:"exit"`
	// Output is what the script wrote to both of its outputs.
	Output string `json:"output,omitempty"`
	// Err says why the agent could not run the script, or had to end it.
	Err string `json:"err,omitempty"`
}
