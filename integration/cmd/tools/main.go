// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command tools prepares the programs that the integration tests and the demo
// need. Without arguments it prepares all of them; with arguments only those
// named (stock, ctr, runc, shim, shim-1.6, shim-1.7, shim-2.2, busybox, cni).
// It prints the path of each.
package main

import (
	"fmt"
	"os"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/internal/tools"
)

func main() {
	if err := prepare(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
}

func prepare(names []string) error {
	t, err := tools.New(os.Stderr)
	if err != nil {
		return err
	}
	makers := map[string]func() (string, error){
		"stock": t.Stock, "ctr": t.Ctr, "runc": t.Runc, "shim": t.Shim, "busybox": t.Busybox, "cni": t.CNI,
		"shim-1.6": t.Shim16, "shim-1.7": t.Shim17, "shim-2.2": t.Shim22,
	}
	if len(names) == 0 {
		names = []string{"busybox", "runc", "shim", "ctr", "stock", "shim-1.6", "shim-1.7", "shim-2.2", "cni"}
	}
	for _, name := range names {
		prepareOne, known := makers[name]
		if !known {
			return errors.Errorf("cannot prepare %q: no such tool", name)
		}
		path, err := prepareOne()
		switch {
		case errors.Is(err, tools.ErrNoPackage):
			// What needs it skips, saying so.
			fmt.Fprintf(os.Stderr, "tools: %s left out: %v\n", name, err)
		case err != nil:
			return err
		default:
			fmt.Println(path)
		}
	}
	return nil
}
