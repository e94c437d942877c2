// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/report"
)

// crowd is the running containers of one daemon.
type crowd struct {
	*benchNode
	pids []uint32 // of their inits
}

// bothCrowds are those of the two daemons, the one that begins first: it is another in each round.
type bothCrowds struct{ stock, ours *crowd }

func (c *bothCrowds) order(round int) []*crowd {
	if round%2 == 1 {
		return []*crowd{c.ours, c.stock}
	}
	return []*crowd{c.stock, c.ours}
}

// crowds measures what depends on how many containers run.
func (b *bench) crowds() {
	c := &bothCrowds{&crowd{benchNode: b.stock}, &crowd{benchNode: b.ours}}
	for _, one := range c.order(0) {
		one.Stop()
		one.Run() // what the sections before have left in its memory is none of this
	}
	rows := b.crowdRows()
	var grown []holds
	for _, size := range b.sizes {
		b.refresh()
		from := time.Now()
		for _, one := range c.order(0) {
			one.grow(size)
		}
		b.t.Logf("%d containers on each side run after %s", size, time.Since(from).Round(time.Second))
		b.refresh()
		if b.wants("memory") {
			grown = append(grown, b.holds(c))
		}
		if b.wants("list") && size > 0 {
			b.askAll(c, rows, size)
		}
		if b.wants("restart") && slices.Contains(b.restartAt, size) {
			b.restartAll(c, rows, size)
		}
	}
	if b.wants("memory") {
		for _, one := range c.order(0) {
			one.restart()
		}
		b.memory(grown, b.holds(c))
	}
	if b.wants("stalled") {
		b.refresh()
		b.stallSome(c, rows)
	}
	b.refresh()
	from := time.Now()
	c.ours.leave()
	c.stock.leave()
	b.t.Logf("all gone after %s", time.Since(from).Round(time.Second))
	b.results.Rows = append(b.results.Rows, rows.sorted()...)
	if b.lenient.on {
		b.stock.Abandon()
	}
}

// crowdRows are made as they are measured and shown by what they are of.
type crowdRows struct {
	b      *bench
	groups []string
	rows   map[string][]*report.Row
}

const (
	sectionAsk     = "Asking"
	sectionRestart = "Restart of the daemon, to its first answer"
)

func (b *bench) crowdRows() *crowdRows {
	return &crowdRows{b: b, groups: []string{"list", "stats", "metrics", "ready", "listed"},
		rows: map[string][]*report.Row{}}
}

func (r *crowdRows) add(group string, row report.Row) *report.Row {
	r.rows[group] = append(r.rows[group], &row)
	return &row
}

func (r *crowdRows) sorted() []*report.Row {
	var all []*report.Row
	for _, g := range r.groups {
		all = append(all, r.rows[g]...)
	}
	return all
}

// grow starts containers until there are so many.
func (c *crowd) grow(size int) {
	c.t.Helper()
	from := len(c.pids)
	c.pids = append(c.pids, make([]uint32, max(0, size-from))...)
	c.each(size-from, func(i int) error {
		j, err := c.tryRun(crowdID(from+i), forever())
		if err == nil {
			c.pids[from+i] = j.Pid()
		}
		return err
	})
	require.NoError(c.t, c.list(c.ctx))
}

func crowdID(i int) string { return fmt.Sprintf("crowd-%03d", i) }

// list asks for all tasks and checks that they are there and running.
func (c *crowd) list(ctx context.Context) error {
	list, err := c.Client().TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return errors.Wrap(err, "cannot list")
	}
	if len(list.Tasks) != len(c.pids) {
		return errors.Errorf("%d tasks are listed, not %d", len(list.Tasks), len(c.pids))
	}
	for _, p := range list.Tasks {
		if p.Status != tasktypes.Status_RUNNING {
			return errors.Errorf("%s is %s", p.ID, p.Status)
		}
	}
	return nil
}

// stats asks for the metrics of all tasks over the API.
func (c *crowd) stats(ctx context.Context) error {
	all, err := c.Client().TaskService().Metrics(ctx, &tasks.MetricsRequest{})
	if err != nil {
		return errors.Wrap(err, "cannot get stats")
	}
	if len(all.Metrics) != len(c.pids) {
		return errors.Errorf("stats of %d tasks, not of %d", len(all.Metrics), len(c.pids))
	}
	return nil
}

var containerLabel = regexp.MustCompile(`container_id="(crowd-\d+)"`)

// scrape asks the endpoint that Prometheus would ask.
func (c *crowd) scrape(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.metrics+"/v1/metrics", nil)
	if err != nil {
		return errors.Wrap(err, "cannot ask for metrics")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return errors.Wrap(err, "cannot ask for metrics")
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return errors.Wrap(err, "cannot read metrics")
	}
	of := map[string]bool{}
	for _, m := range containerLabel.FindAllSubmatch(body, -1) {
		of[string(m[1])] = true
	}
	if len(of) != len(c.pids) {
		return errors.Errorf("metrics of %d tasks, not of %d", len(of), len(c.pids))
	}
	return nil
}

// askAll times the questions that take the longer the more tasks there are.
func (b *bench) askAll(c *bothCrowds, rows *crowdRows, size int) {
	for _, q := range []struct {
		group, name string
		ask         func(*crowd) error
	}{
		{"list", "list of %d tasks", func(c *crowd) error { return c.list(c.ctx) }},
		{"stats", "stats of %d tasks", func(c *crowd) error { return c.stats(c.ctx) }},
		{"metrics", "metrics endpoint with %d tasks", func(c *crowd) error { return c.scrape(c.ctx) }},
	} {
		row := rows.add(q.group, report.Row{Section: sectionAsk, Name: fmt.Sprintf(q.name, size), Unit: "ms"})
		if q.group == "list" || size == b.largest() { // the plot has no room for all
			row.Chart, row.Label = chartAsk, fmt.Sprintf("%s %d", q.group, size)
		}
		for round := range b.asks + 1 {
			for _, one := range c.order(round) {
				begin := time.Now()
				err := q.ask(one)
				took := time.Since(begin)
				require.NoError(b.t, err)
				if round > 0 { // the first has connections to make
					row.Sample(one.side, millis(took))
				}
			}
		}
	}
}

func (b *bench) largest() int { return slices.Max(b.sizes) }

// leave ends all containers that there still are, and removes what is left of the others.
func (c *crowd) leave() {
	c.t.Helper()
	c.each(len(c.pids), func(i int) error {
		if c.pids[i] == 0 {
			return nil
		}
		return c.end(crowdID(i))
	})
	c.pids = nil
}

// restartAll times starts of the daemons among their running containers.
func (b *bench) restartAll(c *bothCrowds, rows *crowdRows, size int) {
	ready, listed := b.restartRows(rows, fmt.Sprintf("with %d running", size), strconv.Itoa(size))
	if size == b.largest() {
		ready.Brief = fmt.Sprintf("restart of the daemon with %d running, to its first answer", size)
	}
	for round := range b.restarts {
		for _, one := range c.order(round) {
			toReady, toList := one.restart()
			ready.Sample(one.side, millis(toReady))
			listed.Sample(one.side, millis(toList))
		}
	}
}

func (b *bench) restartRows(rows *crowdRows, when, label string) (ready, listed *report.Row) {
	ready = rows.add("ready", report.Row{
		Section: sectionRestart, Name: "ready " + when, Unit: "ms", Chart: chartRestart, Label: label,
	})
	listed = rows.add("listed", report.Row{Section: sectionRestart, Name: "all listed as running, " + when, Unit: "ms"})
	return ready, listed
}

// restart stops the daemon as an init system does and starts it; the times run from its start to when it serves, and to
// when it has listed all containers as running.
func (c *crowd) restart() (ready, listed time.Duration) {
	c.t.Helper()
	c.Stop()
	begin := time.Now()
	c.Run()
	ready = time.Since(begin)
	require.NoError(c.t, c.list(c.ctx))
	listed = time.Since(begin)
	c.rest()
	return ready, listed
}

// rest waits until the daemon has done what it does behind its readiness: it is not the next one's.
func (c *crowd) rest() {
	var before uint64
	for equal, end := 0, time.Now().Add(patience); equal < 3 && time.Now().Before(end); time.Sleep(10 * tick) {
		now := cpuTicks(c.Pid())
		if now-before <= 1 {
			equal++
		} else {
			equal = 0
		}
		before = now
	}
}

// cpuTicks is the time that a process has worked for.
func cpuTicks(pid int) uint64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // one that is gone does not work
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseUint(f[11], 10, 64) // the kernel writes numbers
	system, _ := strconv.ParseUint(f[12], 10, 64)
	return user + system
}

// stallSome measures with some shims stalled. Stock kills their containers, so it comes last, once.
func (b *bench) stallSome(c *bothCrowds, rows *crowdRows) {
	when := fmt.Sprintf("with %d running, %d of their shims stalled", len(c.ours.pids), b.stalled)
	list := rows.add("list", report.Row{
		Section: sectionAsk, Name: fmt.Sprintf("list of %d tasks, %d of their shims stalled", len(c.ours.pids),
			b.stalled), Unit: "ms",
		Chart: chartAsk, Label: "list, stalled",
	})
	ready, listed := b.restartRows(rows, when, "stalled")
	list.Brief, ready.Brief = list.Name, fmt.Sprintf("restart of the daemon with %d of their shims stalled", b.stalled)

	shims := c.ours.stall(b.stalled)
	defer resume(shims)
	for range b.restarts {
		list.Sample(report.Ours, millis(c.ours.timeList()))
		toReady, toList := c.ours.restart()
		ready.Sample(report.Ours, millis(toReady))
		listed.Sample(report.Ours, millis(toList))
	}
	for _, pid := range c.ours.pids {
		require.True(b.t, runs(pid), "a container of the custom daemon is gone")
	}
	resume(shims)
	for i := range b.stalled {
		require.Eventually(b.t, func() bool { return c.ours.use(crowdID(i), c.ours.pids[i], five...) == nil }, patience,
			tick)
	}
	b.stallStock(c.stock, list, ready, listed)
}

func (b *bench) stallStock(c *crowd, list, ready, listed *report.Row) {
	b.refresh()
	b.lenient.on = true
	shims := c.stall(b.stalled)
	defer resume(shims)
	list.Sample(report.Stock, millis(c.timeList()))
	c.Stop()
	begin := time.Now()
	serves := c.RunDoomed()
	took := time.Since(begin)
	if !serves {
		ready.Notes = append(ready.Notes, fmt.Sprintf("Stock containerd does not serve within %s.", patience))
		b.stock.Stop()
		resume(shims)
		c.Run()
	} else {
		ready.Sample(report.Stock, millis(took))
	}
	killed := 0
	for i, pid := range c.pids {
		if !runs(pid) {
			c.pids[i] = 0
			killed++
		}
	}
	note := fmt.Sprintf("Stock containerd is measured once. It has killed %d of the %d containers whose shims are stalled.", killed, b.stalled)
	ready.Notes = append(ready.Notes, note)
	listed.Notes = append(listed.Notes, "Stock containerd no longer has them all.")
	resume(shims)
}

// stall stops the shims of the first containers.
func (c *crowd) stall(count int) []int {
	c.t.Helper()
	shims := c.shimsOf(c.pids[:count])
	for _, pid := range shims {
		require.NoError(c.t, unix.Kill(pid, unix.SIGSTOP))
	}
	return shims
}

func (c *crowd) timeList() time.Duration {
	c.t.Helper()
	begin := time.Now()
	_, err := c.Client().TaskService().List(c.ctx, &tasks.ListTasksRequest{})
	require.NoError(c.t, err)
	return time.Since(begin)
}
