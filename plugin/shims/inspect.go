// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"context"
	"fmt"
	"os"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"

	"github.com/shimyard/shimyard/manager/inspect"
)

func (a *app) inspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "show all that is known of a task or sandbox", ArgsUsage: "ID",
		OnUsageError: usageError, ShellComplete: a.completeID,
		Flags: []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "json or yaml",
			Value: "json"}},
		Action: a.runInspect,
	}
}

func (a *app) runInspect(ctx context.Context, cmd *cli.Command) error {
	name, err := oneID(cmd)
	if err != nil {
		return err
	}
	write := writeJSON
	switch format := cmd.String("output"); format {
	case "json":
	case "yaml":
		write = writeYAML
	default:
		return cli.Exit(fmt.Sprintf("containerd shims inspect: no output format %q, there are json and yaml", format),
			ExitUsage)
	}
	ns, id, err := a.find(ctx, cmd, name)
	if err != nil {
		return err
	}
	var r inspect.InspectResponse
	if err := a.ask(ctx, cmd, &inspect.InspectRequest{Namespace: ns, ID: id}, &r); err != nil {
		return err
	}
	return write(cmd.Root().Writer, r)
}

func (a *app) dumpCommand() *cli.Command {
	return &cli.Command{
		Name: "dump", Usage: "show the stacks of a shim's goroutines; exit code 5 where the shim cannot show them",
		ArgsUsage:    "ID",
		OnUsageError: usageError, ShellComplete: a.completeID,
		Flags:  []cli.Flag{&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "write them into this file"}},
		Action: a.runDump,
	}
}

func (a *app) runDump(ctx context.Context, cmd *cli.Command) error {
	name, err := oneID(cmd)
	if err != nil {
		return err
	}
	ns, id, err := a.find(ctx, cmd, name)
	if err != nil {
		return err
	}
	var r inspect.DumpResponse
	if err := a.ask(ctx, cmd, &inspect.DumpRequest{Namespace: ns, ID: id}, &r); err != nil {
		return err
	}
	if path := cmd.String("file"); path != "" {
		return errors.Wrap(os.WriteFile(path, []byte(r.Text), 0o600), "cannot write the stacks")
	}
	_, err = fmt.Fprint(cmd.Root().Writer, r.Text)
	return err
}
