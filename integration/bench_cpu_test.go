// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shimyard/shimyard/integration/internal/report"
)

// daemons are both, the one that begins first: it is another in each round.
func (b *bench) daemons(round int) []*benchNode {
	if round%2 == 1 {
		return []*benchNode{b.ours, b.stock}
	}
	return []*benchNode{b.stock, b.ours}
}

// cpu measures what the daemons themselves take of the processors for a container, beside shim and runc.
func (b *bench) cpu() {
	defer b.profile()()
	const section = "CPU time of the daemon, for each container"
	for _, kind := range []struct {
		name    string
		brief   string
		prepare func(*benchNode) func(id string) (subject, error)
		do      func(subject) error
		rest    func(subject) error
	}{
		{"create to delete", "CPU time of the daemon for a container, create to delete", func(n *benchNode) func(string) (subject, error) { return n.prepare }, cycle, nil},
		{"create and start, where no warm shim can serve", "",
			func(n *benchNode) func(string) (subject, error) { return n.prepareAlone }, up, down},
	} {
		row := b.results.Add(report.Row{Section: section, Name: kind.name, Unit: "ms", Brief: kind.brief})
		for pass := range b.passes {
			b.refresh()
			for _, n := range b.daemons(pass) {
				list, discard := b.prepared(contender{n.side, kind.prepare(n)}, fmt.Sprint("cpu-", pass), b.containers)
				before := n.cpuTime()
				for _, s := range list {
					require.NoError(b.t, kind.do(s))
				}
				row.Sample(n.side, millis(n.cpuTime()-before)/float64(len(list)))
				for _, s := range list {
					if kind.rest != nil {
						require.NoError(b.t, kind.rest(s))
					}
				}
				discard()
			}
		}
	}
}

// prepareAlone is prepare for a container that names a group of its own, so that its shim is started for it.
func (n *benchNode) prepareAlone(id string) (subject, error) {
	b, err := n.tryCreate(id, forever(),
		with(oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": id})))
	return &boxed{box: b}, err
}

func up(s subject) error {
	if err := s.create(); err != nil {
		return err
	}
	return s.start()
}

func down(s subject) error {
	if err := s.end(); err != nil {
		return err
	}
	return s.delete()
}

// cpuTime is what the daemon's threads have run, to the nanosecond, as the scheduler counts it.
func (n *benchNode) cpuTime() (sum time.Duration) {
	n.t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", n.Pid()))
	require.NoError(n.t, err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // a thread that has ended; a daemon's seldom do
		}
		require.NoError(n.t, err)
		ran, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		require.NoError(n.t, err)
		sum += time.Duration(ran)
	}
	return sum
}

// storm creates and starts many containers at once right after a start of the daemon, when no shim waits.
func (b *bench) storm() {
	count := 2 * b.containers
	section := fmt.Sprintf("%d creates and starts at once, right after a start of the daemon", count)
	half := b.results.Add(report.Row{Section: section, Name: "half of them run after", Unit: "ms"})
	last := b.results.Add(report.Row{Section: section, Name: "the last runs after", Unit: "ms",
		Brief: section + ", until the last runs"})
	for pass := range min(3, b.passes) {
		for _, n := range b.daemons(pass) {
			n.Stop()
			n.Run()
			b.refresh()
			list, discard := b.prepared(contender{n.side, n.prepare}, fmt.Sprint("storm-", pass), count)
			took := make([]time.Duration, count)
			var g errgroup.Group
			begin := time.Now()
			for i, s := range list {
				g.Go(func() error {
					err := up(s)
					took[i] = time.Since(begin)
					return err
				})
			}
			require.NoError(b.t, g.Wait())
			slices.Sort(took)
			half.Sample(n.side, millis(took[count/2]))
			last.Sample(n.side, millis(took[count-1]))
			b.refresh()
			n.each(count, func(i int) error { return down(list[i]) })
			discard()
		}
	}
}
