// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/shimyard/shimyard/manager/inspect"
)

func (a *app) listCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Aliases: []string{"list"}, Usage: "list tasks and sandboxes with their shims",
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "state", Usage: "only those in this state: " + strings.Join(inspect.States(), ", ")},
			&cli.StringFlag{Name: "runtime", Usage: "only those of this runtime"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "wide, json, yaml or name"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "ids alone"},
			&cli.BoolFlag{Name: "no-headers", Usage: "no line of column names"},
			&cli.BoolFlag{Name: "no-trunc", Usage: "whole ids and errors"},
		},
		Action: a.runList,
	}
}

func (a *app) runList(ctx context.Context, cmd *cli.Command) error {
	if err := noArgs(cmd); err != nil {
		return err
	}
	if s := cmd.String("state"); s != "" && !slices.Contains(inspect.States(), s) {
		return cli.Exit(fmt.Sprintf("containerd shims ls: no state %q, there are %s", s,
			strings.Join(inspect.States(), ", ")), ExitUsage)
	}
	write, err := a.listWriter(cmd)
	if err != nil {
		return err
	}
	all, err := a.list(ctx, cmd, true)
	if err != nil {
		return err
	}
	return write(cmd.Root().Writer, slices.DeleteFunc(all, func(i inspect.Instance) bool {
		return cmd.String("state") != "" && i.State != cmd.String("state") || cmd.String("runtime") != "" &&
			i.Runtime != cmd.String("runtime")
	}))
}

// listWriter is how the command line wants the list.
func (a *app) listWriter(cmd *cli.Command) (func(io.Writer, []inspect.Instance) error, error) {
	format := cmd.String("output")
	if cmd.Bool("quiet") {
		return func(w io.Writer, all []inspect.Instance) error {
			return writeLines(w, all, func(i inspect.Instance) string { return i.ID })
		}, nil
	}
	switch format {
	case "", "wide":
		return func(w io.Writer, all []inspect.Instance) error {
			return a.writeTable(w, all, format == "wide", cmd.Bool("no-trunc"), !cmd.Bool("no-headers"))
		}, nil
	case "name":
		return func(w io.Writer, all []inspect.Instance) error {
			return writeLines(w, all, func(i inspect.Instance) string { return i.Namespace + "/" + i.ID })
		}, nil
	case "json", "yaml":
		write := writeJSON
		if format == "yaml" {
			write = writeYAML
		}
		return func(w io.Writer, all []inspect.Instance) error {
			return write(w, inspect.ListResponse{Version: inspect.Version,
				Instances: append([]inspect.Instance{}, all...)})
		}, nil
	}
	return nil, cli.Exit(fmt.Sprintf("containerd shims ls: no output format %q, there are wide, json, yaml and name",
		format), ExitUsage)
}

func writeLines(w io.Writer, all []inspect.Instance, line func(inspect.Instance) string) error {
	for _, i := range all {
		if _, err := fmt.Fprintln(w, line(i)); err != nil {
			return err
		}
	}
	return nil
}

var (
	columns     = []string{"NAMESPACE", "ID", "KIND", "STATE", "AGE", "RUNTIME", "SHIM-PID", "RSS", "TASKS"}
	wideColumns = []string{"SINCE", "SOURCE", "API", "ADDRESS", "LAST-ERROR"}
)

func (a *app) writeTable(w io.Writer, all []inspect.Instance, wide, whole, header bool) error {
	var head []string
	if header {
		head = slices.Clone(columns)
		if wide {
			head = append(head, wideColumns...)
		}
	}
	rows := make([][]string, 0, len(all))
	for _, i := range all {
		row := a.row(i, whole)
		if wide {
			row = append(row, a.wideRow(i, whole)...)
		}
		rows = append(rows, row)
	}
	return table(w, head, rows)
}

func (a *app) row(i inspect.Instance, whole bool) []string {
	id := i.ID
	if !whole {
		id = short(id)
	}
	pid, rss := "", ""
	if i.Shim != nil {
		pid = strconv.Itoa(i.Shim.Pid)
		if i.Shim.RSS > 0 {
			rss = size(i.Shim.RSS)
		}
	}
	return []string{i.Namespace, id, i.Kind, i.State, a.ageOf(i.Created), i.Runtime, pid, rss, number(i.Tasks)}
}

func (a *app) wideRow(i inspect.Instance, whole bool) []string {
	const keep = 60
	failure := i.LastError
	if r := []rune(failure); !whole && len(r) > keep {
		failure = string(r[:keep-1]) + "…"
	}
	return []string{a.ageOf(i.Since), i.Source, number(i.API), i.Address, failure}
}

func (a *app) ageOf(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return age(a.now().Sub(t))
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
