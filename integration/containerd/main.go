// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command containerd is containerd with Shimyard as its task runtime: same flags, same config, same files on disk.
package main

import (
	"context"
	"fmt"
	"os"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	"github.com/containerd/containerd/v2/cmd/containerd/command"
	"github.com/containerd/containerd/v2/version"

	"github.com/shimyard/shimyard/plugin"
	"github.com/shimyard/shimyard/plugin/shims"
)

func main() {
	plugin.Replace()
	version.Version = buildVersion()
	app := command.App()
	app.Commands = append(app.Commands, shims.Command())
	app.EnableShellCompletion = true // `containerd completion bash`, as ctr has it
	if err := app.Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		os.Exit(1)
	}
}
