// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shimyard/shimyard/integration/internal/report"
)

const (
	chartLatency    = "latency"
	chartThroughput = "throughput"
	chartAsk        = "ask"
	chartRestart    = "restart"
)

// latency runs one container after the other, of each side in turn, and times its steps.
func (b *bench) latency() {
	defer b.profile()()
	alone, end := newDirect(b)
	defer end()
	called, discard := b.prepared(contender{report.Bare, alone.prepare}, "direct", b.drop+b.rounds)
	defer discard()
	var floor []float64
	sum := b.timeSteps("One container at a time", "runc", chartLatency, b.contenders(0), func(round int) {
		t, err := timed(called[round])
		require.NoError(b.t, err)
		if round >= b.drop {
			floor = append(floor, millis(t.create+t.start+t.delete))
		}
	})
	least := b.results.Add(report.Row{Section: sum.Section, Unit: "ms",
		Name: "the same sum of a runc shim that runs already and is called without any daemon (shown under bare runc)"})
	least.Samples[report.Bare] = report.Differences(floor, sum.Samples[report.Bare])
}

// timeSteps runs one container after the other, of each contender in turn, and times its steps; before is done in each
// round. It returns the row of all steps.
func (b *bench) timeSteps(section, runtime, chart string, all []contender, before func(round int)) *report.Row {
	row := func(name, label string) *report.Row {
		r := report.Row{Section: section, Name: name, Unit: "ms"}
		if label != "" && chart != "" {
			r.Chart, r.Label = chart, label
		}
		return b.results.Add(r)
	}
	create, start := row("create", ""), row("start", "")
	up, down, sum := row("create + start", "create+start"), row("delete", "delete"), row("create + start + delete", "sum")
	if chart != "" { // those with the first runtime alone
		sum.Brief = sum.Name
	}
	subjects := map[report.Side][]subject{}
	for _, c := range all {
		list, discard := b.prepared(c, "latency", b.drop+b.rounds)
		defer discard()
		subjects[c.side] = list
	}
	for round := range b.drop + b.rounds {
		before(round)
		for _, c := range inTurn(all, round) {
			t, err := timed(subjects[c.side][round])
			require.NoError(b.t, err)
			if round < b.drop {
				continue
			}
			create.Sample(c.side, millis(t.create))
			start.Sample(c.side, millis(t.start))
			up.Sample(c.side, millis(t.create+t.start))
			down.Sample(c.side, millis(t.delete))
			sum.Sample(c.side, millis(t.create+t.start+t.delete))
		}
	}
	for _, of := range []struct {
		*report.Row
		label string
	}{{up, ""}, {down, ""}, {sum, "sum over bare " + runtime}} {
		over := row(of.Name+", over bare "+runtime+" in the same round", of.label)
		if of.Row == sum {
			over.Brief = over.Name
		}
		for _, s := range []report.Side{report.Stock, report.Ours} {
			over.Samples[s] = report.Differences(of.Samples[s], of.Samples[report.Bare])
		}
	}
	return sum
}

type times struct{ create, start, delete time.Duration }

func timed(s subject) (t times, err error) {
	for _, step := range []struct {
		do   func() error
		took *time.Duration
	}{{s.create, &t.create}, {s.start, &t.start}, {s.end, new(time.Duration)}, {s.delete, &t.delete}} {
		begin := time.Now()
		if err := step.do(); err != nil {
			return t, err
		}
		*step.took = time.Since(begin)
	}
	return t, nil
}

// profile takes CPU profiles of the custom daemon, where they are asked for, until the returned function is called.
func (b *bench) profile() (stop func()) {
	if *benchProfile == "" {
		return func() {}
	}
	require.NoError(b.t, os.MkdirAll(*benchProfile, 0o755))
	var over atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; !over.Load(); i++ {
			data, err := b.ours.Profile(5)
			if err == nil {
				err = os.WriteFile(filepath.Join(*benchProfile, fmt.Sprintf("cpu-%03d.pprof", i)), data, 0o644)
			}
			if err != nil {
				b.t.Errorf("cannot take a profile: %v", err)
				return
			}
		}
	})
	return func() {
		over.Store(true)
		wg.Wait()
	}
}

// throughput runs containers from create to delete, some at once.
func (b *bench) throughput() {
	const section = "Containers a second"
	for _, workers := range b.workers {
		row := b.results.Add(report.Row{
			Section: section, Name: fmt.Sprintf("create, start, kill and delete, %d at once", workers), Unit: "/s",
			More: true, Chart: chartThroughput, Label: fmt.Sprintf("%d at once", workers),
		})
		if workers == 8 {
			row.Brief = "containers a second, create to delete, 8 at once"
		}
		for pass := range b.passes {
			b.refresh()
			for _, c := range b.contenders(pass) {
				row.Sample(c.side, b.rate(c, workers))
			}
		}
	}
}

// rate is how many containers a second the workers run. One worker alone runs half as many as several do.
func (b *bench) rate(c contender, workers int) float64 {
	count := b.containers
	if workers == 1 {
		count = max(1, count/2)
	}
	subjects, discard := b.prepared(c, "rate", count)
	defer discard()
	var g errgroup.Group
	var next atomic.Int64
	begin := time.Now()
	for range workers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= count {
					return nil
				}
				if err := cycle(subjects[i]); err != nil {
					return err
				}
			}
		})
	}
	err := g.Wait()
	took := time.Since(begin)
	require.NoError(b.t, err)
	return float64(count) / took.Seconds()
}

// exec runs processes in one container of each side.
func (b *bench) exec() {
	const section = "Exec"
	started := b.results.Add(report.Row{Section: section, Name: "exec, to its start", Unit: "ms"})
	whole := b.results.Add(report.Row{Section: section, Name: "exec of `true`, to its exit and delete", Unit: "ms"})
	subjects := map[report.Side]subject{}
	for _, c := range b.contenders(0) {
		list, discard := b.prepared(c, "exec", 1)
		defer discard()
		s := list[0]
		require.NoError(b.t, s.create())
		require.NoError(b.t, s.start())
		defer func() {
			require.NoError(b.t, s.end())
			require.NoError(b.t, s.delete())
		}()
		subjects[c.side] = s
	}
	for round := range b.drop + b.rounds {
		for _, c := range b.contenders(round) {
			begin := time.Now()
			var up time.Duration
			var err error
			switch s := subjects[c.side].(type) {
			case *boxed:
				up, err = s.exec(fmt.Sprint("exec-", round))
			case *bundled:
				err = s.exec()
			}
			took := time.Since(begin)
			require.NoError(b.t, err)
			if round < b.drop {
				continue
			}
			whole.Sample(c.side, millis(took))
			if up > 0 {
				started.Sample(c.side, millis(up))
			}
		}
	}
}

// exec returns how long it took to the start.
func (s *boxed) exec(id string) (time.Duration, error) {
	begin := time.Now()
	p, err := s.task.Exec(s.ctx, id, process("true"), cio.NullIO)
	if err != nil {
		return 0, errors.Wrap(err, "cannot exec")
	}
	ch, err := p.Wait(s.ctx)
	if err != nil {
		return 0, errors.Wrap(err, "cannot wait for an exec")
	}
	if err := p.Start(s.ctx); err != nil {
		return 0, errors.Wrap(err, "cannot start an exec")
	}
	up := time.Since(begin)
	status := <-ch
	if code, _, err := status.Result(); err != nil || code != 0 {
		return 0, errors.Errorf("an exec has exited with %d, %v", code, err)
	}
	_, err = p.Delete(s.ctx)
	return up, errors.Wrap(err, "cannot delete an exec")
}

func (s *bundled) exec() error {
	spec, err := json.Marshal(process("true"))
	if err != nil {
		return errors.Wrap(err, "cannot write the spec of an exec")
	}
	if err := os.WriteFile(s.bundle("process.json"), spec, 0o600); err != nil {
		return errors.Wrap(err, "cannot write the spec of an exec")
	}
	return s.r.runc("exec", "--process", s.bundle("process.json"), s.id)
}
