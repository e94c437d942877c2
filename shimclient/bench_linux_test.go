// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"
	"testing"
)

// A create looks half a dozen times whether a process lives.
func BenchmarkAlive(b *testing.B) {
	id, err := LookupProcess(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if !id.Alive() {
			b.Fatal("it is not alive")
		}
	}
}

// And once whether the container's init is the shim's child.
func BenchmarkDescendsFrom(b *testing.B) {
	child, err := LookupProcess(sleeper(b).Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	parent, err := LookupProcess(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if !child.DescendsFrom(parent) {
			b.Fatal("it is not its child")
		}
	}
}
