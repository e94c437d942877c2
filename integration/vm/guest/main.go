// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command guest is what runs inside the virtual machine on the host's behalf: the agent that runs the checks' scripts,
// the load that a power cut hits, a registry to pull from, and the looks at containers, at what is left
// of them, and at the shims that wait for one.
package main

import (
	"fmt"
	"os"

	"github.com/pkg/errors"
)

func main() {
	commands := map[string]func([]string) error{
		"agent": agent, "events": follow, "leftovers": leftovers, "load": load, "registry": registry,
		"unnoticed": unnoticed, "warm": warm,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: guest agent DEVICE | events NAMESPACE | leftovers NAMESPACE | "+
			"load NAMESPACE WORKERS ROUNDS | registry IMAGE.tar | unnoticed NAMESPACE ID... | warm PID WORKERS")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func argument(args []string, n int) (string, error) {
	if len(args) <= n {
		return "", errors.New("an argument is missing")
	}
	return args[n], nil
}
