// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package shims is the command `containerd shims`, which shows what a daemon with Shimyard knows of its shims. It is a
// package of its own so that the plugin package does not import a client.
//
// Data goes to standard output and everything else to standard error. The exit code is one of the Exit constants.
package shims

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/urfave/cli/v3"
)

// Exit codes of the command.
const (
	// ExitProblem: `check` has found something, or the request failed for a reason that has no code of its own.
	ExitProblem = 1
	// ExitUsage: the arguments do not make sense.
	ExitUsage = 2
	// ExitNotFound: there is no such instance.
	ExitNotFound = 3
	// ExitUnavailable: no daemon answers, or it runs containerd's own runtime.
	ExitUnavailable = 4
	// ExitUnsupported: the shim cannot do that.
	ExitUnsupported = 5
)

// callTimeout bounds one request. None of them waits for a shim for longer than a second.
const callTimeout = 10 * time.Second

// Command is `shims` with all its subcommands, to be added to containerd's.
func Command() *cli.Command { return (&app{connect: dial, now: time.Now}).command() }

// app is what the subcommands share.
type app struct {
	connect func(address string) (asker, error)
	now     func() time.Time
}

func (a *app) command() *cli.Command {
	return &cli.Command{
		Name:  "shims",
		Usage: "show the shims of a running daemon",
		Description: "An ID may be cut short, as long as one instance is meant, and may be given as NAMESPACE/ID.\n\n" +
			"Exit codes: 1 check has found something, or another failure; 2 wrong arguments; 3 no such instance; " +
			"4 no daemon answers, or one without Shimyard; 5 the shim cannot do that.",
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "address", Aliases: []string{"a"}, Usage: "address of the daemon's gRPC server",
				Value: defaults.DefaultAddress, Sources: cli.EnvVars("CONTAINERD_ADDRESS"),
			},
			&cli.StringFlag{Name: "namespace", Aliases: []string{"n"},
				Usage: "only this namespace; the default is all"},
		},
		OnUsageError: usageError,
		Action:       noCommand,
		Commands: []*cli.Command{
			a.listCommand(), a.inspectCommand(), a.dumpCommand(), a.logsCommand(), a.topCommand(), a.checkCommand(),
		},
	}
}

// noCommand is for a command line without a subcommand that there is. The library would end with code 3, which here
// means that there is no such instance.
func noCommand(_ context.Context, cmd *cli.Command) error {
	if !cmd.Args().Present() {
		return cli.ShowSubcommandHelp(cmd)
	}
	var names []string
	for _, c := range cmd.VisibleCommands() {
		names = append(names, c.Name)
	}
	return cli.Exit(fmt.Sprintf("containerd shims: no command %q, there are %s", cmd.Args().First(),
		strings.Join(names, ", ")), ExitUsage)
}

// usageError gives a flag that cannot be parsed the code of wrong usage.
func usageError(_ context.Context, _ *cli.Command, err error, _ bool) error {
	return cli.Exit("containerd shims: "+err.Error(), ExitUsage)
}

// ask connects to the daemon and puts one question to it.
func (a *app) ask(ctx context.Context, cmd *cli.Command, question, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := a.connect(cmd.String("address"))
	if err != nil {
		return exitError(err)
	}
	defer c.close()
	return exitError(c.ask(ctx, question, answer))
}

// oneID is the only argument of a subcommand.
func oneID(cmd *cli.Command) (string, error) {
	if cmd.Args().Len() != 1 {
		return "", cli.Exit("containerd shims "+cmd.Name+": give one ID", ExitUsage)
	}
	return cmd.Args().First(), nil
}

// noArgs refuses arguments.
func noArgs(cmd *cli.Command) error {
	if cmd.Args().Present() {
		return cli.Exit("containerd shims "+cmd.Name+": takes no arguments, got "+strings.Join(cmd.Args().Slice(), " "),
			ExitUsage)
	}
	return nil
}

// isTerminal tells whether the output goes to a person's terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
