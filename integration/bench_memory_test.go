// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/integration/internal/report"
)

// holds is what the daemons and their shims hold with so many tasks, by side.
type holds map[report.Side]held

type held struct {
	tasks, shims                    int
	pss, rss, heap                  float64   // of the daemon, in KiB
	shimPSS                         []float64 // of each shim, in MiB
	goroutines, descriptors, accept int
}

func (b *bench) holds(c *bothCrowds) holds {
	h := holds{}
	for _, one := range c.order(0) {
		h[one.side] = one.held()
		b.t.Logf("%s: %s", one.side, h[one.side])
	}
	return h
}

func (h held) String() string {
	return fmt.Sprintf("%d tasks in %d shims; PSS %.0f KiB, RSS %.0f KiB, live heap %.0f KiB, %d goroutines, %d descriptors; "+
		"%d connections to shims",
		h.tasks, h.shims, h.pss, h.rss, h.heap, h.goroutines, h.descriptors, h.accept)
}

// held looks when the daemon has come to rest.
func (c *crowd) held() held {
	t := c.t
	t.Helper()
	h := held{tasks: len(c.pids)}
	for equal, end := 0, time.Now().Add(patience); equal < 3 && time.Now().Before(end); time.Sleep(5 * tick) {
		fds, goroutines := c.Usage()
		if fds == h.descriptors && goroutines == h.goroutines {
			equal++
		} else {
			equal = 0
		}
		h.descriptors, h.goroutines = fds, goroutines
	}
	heap, err := c.LiveHeap()
	require.NoError(t, err)
	m, err := daemon.MemoryOf(c.Pid())
	require.NoError(t, err)
	h.heap, h.pss, h.rss = kib(heap), kib(m.PSS), kib(m.RSS)
	for _, pid := range c.shimsOf(c.pids) {
		m, err := daemon.MemoryOf(pid)
		require.NoError(t, err)
		h.shimPSS = append(h.shimPSS, kib(m.PSS)/1024)
	}
	h.shims = len(h.shimPSS)
	h.accept, err = c.Connections()
	require.NoError(t, err)
	return h
}

func kib(bytes uint64) float64 { return float64(bytes) / 1024 }

// shimsOf lists the shims, which are the parents of the containers' inits, each once.
func (c *crowd) shimsOf(pids []uint32) []int {
	c.t.Helper()
	var shims []int
	for _, pid := range pids {
		parent, err := parentOf(pid)
		require.NoError(c.t, err)
		if !slices.Contains(shims, parent) {
			shims = append(shims, parent)
		}
	}
	return shims
}

func parentOf(pid uint32) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, errors.Wrap(err, "cannot find a container's shim")
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	if len(f) < 2 {
		return 0, errors.Errorf("cannot read the stat of %d", pid)
	}
	return strconv.Atoi(f[1])
}

// memory tells what each further task costs the daemon that creates it, which is the difference between the second and
// the third size: after the third the daemons are restarted. Then, what they hold with all tasks after a restart.
func (b *bench) memory(grown []holds, restarted holds) {
	const section = "Memory and what else is held"
	few, many := grown[min(1, len(grown)-1)], grown[min(2, len(grown)-1)]
	row := func(name, unit string, values func(s report.Side) []float64) {
		r := b.results.Add(report.Row{Section: section, Name: name, Unit: unit})
		for _, s := range []report.Side{report.Stock, report.Ours} {
			r.Samples[s] = values(s)
		}
	}
	slope := func(of, by func(held) float64) func(report.Side) []float64 {
		return func(s report.Side) []float64 {
			return []float64{(of(many[s]) - of(few[s])) / (by(many[s]) - by(few[s]))}
		}
	}
	whole := func(of func(held) float64) func(report.Side) []float64 {
		return func(s report.Side) []float64 { return []float64{of(restarted[s])} }
	}
	tasks, shims := func(h held) float64 { return float64(h.tasks) }, func(h held) float64 { return float64(h.shims) }
	goroutines := func(h held) float64 { return float64(h.goroutines) }
	all := b.largest()
	row("daemon's live heap, for each further task", "KiB", slope(func(h held) float64 { return h.heap }, tasks))
	row("daemon's PSS, for each further task", "KiB", slope(func(h held) float64 { return h.pss }, tasks))
	row(fmt.Sprintf("daemon's live heap with %d tasks, after a restart", all), "MiB",
		whole(func(h held) float64 { return h.heap / 1024 }))
	row(fmt.Sprintf("daemon's PSS with %d tasks, after a restart", all), "MiB",
		whole(func(h held) float64 { return h.pss / 1024 }))
	row(fmt.Sprintf("daemon's RSS with %d tasks, after a restart", all), "MiB",
		whole(func(h held) float64 { return h.rss / 1024 }))
	row("PSS of a shim process", "MiB", func(s report.Side) []float64 { return restarted[s].shimPSS })
	row("shim processes for each task", "",
		whole(func(h held) float64 { return float64(h.shims) / float64(h.tasks) }))
	row("connections to each further shim process", "",
		slope(func(h held) float64 { return float64(h.accept) }, shims))
	row("daemon's goroutines, for each further shim process", "", slope(goroutines, shims))
	row("daemon's goroutines for each shim process, after a restart", "",
		func(s report.Side) []float64 {
			return []float64{(goroutines(restarted[s]) - goroutines(grown[0][s])) / max(1, shims(restarted[s]))}
		})
	row("daemon's file descriptors, for each further shim process", "",
		slope(func(h held) float64 { return float64(h.descriptors) }, shims))
}
