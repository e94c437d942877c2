// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"cmp"
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

func (a *app) topCommand() *cli.Command {
	return &cli.Command{
		Name: "top", Usage: "show what shims use: memory, CPU, and whether the kernel holds them up",
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "once", Usage: "show it once, with the CPU share of one interval, and end"},
			&cli.DurationFlag{Name: "interval", Usage: "time between two looks", Value: 2 * time.Second},
		},
		Action: a.runTop,
	}
}

func (a *app) runTop(ctx context.Context, cmd *cli.Command) error {
	if err := noArgs(cmd); err != nil {
		return err
	}
	if cmd.Duration("interval") <= 0 {
		return cli.Exit("containerd shims top: --interval takes a time such as 2s", ExitUsage)
	}
	out := cmd.Root().Writer
	before, err := a.sample(ctx, cmd)
	if err != nil {
		return err
	}
	for {
		select {
		case <-time.After(cmd.Duration("interval")):
		case <-ctx.Done():
			return nil
		}
		now, err := a.sample(ctx, cmd)
		if err != nil {
			return err
		}
		if isTerminal(out) && !cmd.Bool("once") {
			if _, err := io.WriteString(out, "\x1b[H\x1b[2J"); err != nil {
				return err
			}
		}
		if err := table(out, topColumns, topRows(before, now)); err != nil {
			return err
		}
		if cmd.Bool("once") {
			return nil
		}
		before = now
	}
}

// sample is one look at all instances.
type sample struct {
	at  time.Time
	all []inspect.Instance
}

func (a *app) sample(ctx context.Context, cmd *cli.Command) (sample, error) {
	all, err := a.list(ctx, cmd, true)
	return sample{a.now(), all}, err
}

var topColumns = []string{"SHIM-PID", "TASKS", "STATE", "RSS", "CPU%", "SHIM", "INIT", "IDS"}

// topRows has a row for each shim process, the one that uses most CPU first. SHIM and INIT are the kernel's states of
// the processes: D is one that waits for a disk or a file system.
func topRows(before, now sample) [][]string {
	cpu := make(map[int]uint64)
	for _, i := range before.all {
		if i.Shim != nil {
			cpu[i.Shim.Pid] = i.Shim.CPU
		}
	}
	type shim struct {
		of    []inspect.Instance
		share float64
	}
	shims := make(map[int]*shim)
	for _, i := range now.all {
		if i.Shim == nil {
			continue
		}
		s := shims[i.Shim.Pid]
		if s == nil {
			s = &shim{share: share(cpu, i.Shim, now.at.Sub(before.at))}
			shims[i.Shim.Pid] = s
		}
		s.of = append(s.of, i)
	}
	sorted := make([]*shim, 0, len(shims))
	for _, s := range shims {
		sorted = append(sorted, s)
	}
	slices.SortFunc(sorted, func(a, b *shim) int {
		return cmp.Or(cmp.Compare(b.share, a.share), cmp.Compare(a.of[0].Shim.Pid, b.of[0].Shim.Pid))
	})
	rows := make([][]string, 0, len(sorted))
	for _, s := range sorted {
		first := s.of[0]
		var inits, ids []string
		for _, i := range s.of {
			ids = append(ids, i.Namespace+"/"+short(i.ID))
			if i.Init != nil && !slices.Contains(inits, i.Init.State) {
				inits = append(inits, i.Init.State)
			}
		}
		rows = append(rows, []string{
			strconv.Itoa(first.Shim.Pid), strconv.Itoa(len(s.of)), first.State, size(first.Shim.RSS),
			fmt.Sprintf("%.1f", s.share),
			first.Shim.State, strings.Join(inits, ","), strings.Join(ids, ","),
		})
	}
	return rows
}

// share of one CPU, in percent, that a process has used between two looks.
func share(before map[int]uint64, p *inspect.Process, span time.Duration) float64 {
	old, known := before[p.Pid]
	if !known || span <= 0 || p.CPU < old {
		return 0
	}
	return float64(p.CPU-old) * 100 / float64(span.Nanoseconds())
}
