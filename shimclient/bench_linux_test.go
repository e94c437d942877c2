// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"
	"os/exec"
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
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	child, err := LookupProcess(cmd.Process.Pid)
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
