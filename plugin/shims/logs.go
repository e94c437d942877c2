// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/shimyard/shimyard/manager/inspect"
)

// followPause is between two looks for new lines.
const followPause = 300 * time.Millisecond

func (a *app) logsCommand() *cli.Command {
	return &cli.Command{
		Name: "logs", Usage: "show the last lines that a shim has logged", ArgsUsage: "ID",
		OnUsageError: usageError, ShellComplete: a.completeID,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "tail", Usage: "how many of the lines that the daemon has kept; 0 is all", Value: 0},
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on with the lines that come"},
		},
		Action: a.runLogs,
	}
}

func (a *app) runLogs(ctx context.Context, cmd *cli.Command) error {
	name, err := oneID(cmd)
	if err != nil {
		return err
	}
	if cmd.Int("tail") < 0 {
		return cli.Exit("containerd shims logs: --tail takes a number of lines, 0 for all", ExitUsage)
	}
	ns, id, err := a.find(ctx, cmd, name)
	if err != nil {
		return err
	}
	q := &inspect.LogsRequest{Namespace: ns, ID: id, Tail: cmd.Int("tail")}
	for {
		var r inspect.LogsResponse
		if err := a.ask(ctx, cmd, q, &r); err != nil {
			return err
		}
		for _, l := range r.Lines {
			if _, err := fmt.Fprintln(cmd.Root().Writer, l.Text); err != nil {
				return err
			}
		}
		if !cmd.Bool("follow") {
			return nil
		}
		q.After, q.Tail = r.Last, 0
		select {
		case <-time.After(followPause):
		case <-ctx.Done():
			return nil
		}
	}
}
