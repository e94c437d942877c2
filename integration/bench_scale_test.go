// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/integration/internal/report"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// perShim is how many tasks of the fake shim share a process.
const perShim = 100

// thousands measures what grows with the number of tasks, with more of them than a machine can run for real: those of a
// fake shim, which has a hundred of them in a process. Stock containerd is measured at the first size alone.
func (b *bench) thousands() {
	rows := &scaleRows{b: b, of: map[string][]*report.Row{}}
	b.runMany(rows, b.lenient, report.Stock, tool(b.t, kit.Stock), b.scale[0])
	for _, size := range b.scale {
		b.runMany(rows, b.t, report.Ours, kit.daemon, size)
	}
	rows.exponents()
}

// scaleRows are the rows of each quantity, by size.
type scaleRows struct {
	b     *bench
	names []string
	of    map[string][]*report.Row
}

func (r *scaleRows) sample(side report.Side, name, unit string, size int, value float64) {
	i := slices.Index(r.b.scale, size)
	if r.of[name] == nil {
		r.names = append(r.names, name)
		for _, size := range r.b.scale {
			r.of[name] = append(r.of[name], &report.Row{
				Section: fmt.Sprintf("Many tasks: of a fake shim, %d in a process", perShim),
				Name:    fmt.Sprintf("%s, %d tasks", name, size), Unit: unit,
			})
		}
	}
	r.of[name][i].Sample(side, value)
}

// exponents puts the rows into the results, each quantity with the exponent by which it grows from the first to the
// last size: 1 is in proportion.
func (r *scaleRows) exponents() {
	for _, name := range r.names {
		rows := r.of[name]
		r.b.results.Rows = append(r.b.results.Rows, rows...)
		few, many := rows[0].Samples[report.Ours], rows[len(rows)-1].Samples[report.Ours]
		if len(few) == 0 || len(many) == 0 {
			continue
		}
		by := float64(r.b.scale[len(r.b.scale)-1]) / float64(r.b.scale[0])
		growth := math.Log(report.Summarize(many).Median/report.Summarize(few).Median) / math.Log(by)
		r.b.results.Add(report.Row{Section: rows[0].Section, Name: name + ", exponent of growth"}).
			Sample(report.Ours, growth)
	}
}

// runMany makes the tasks of one daemon, measures, and ends them all.
func (b *bench) runMany(rows *scaleRows, tb testing.TB, side report.Side, binary string, size int) {
	busybox, err := kit.Busybox()
	require.NoError(b.t, err)
	shim := shimtest.Install(b.t, shimtest.Scenario{Program: []string{busybox, "sleep", "3600"}}, shimtest.WithName(filepath.Base(kit.shim)))
	n := &benchNode{side: side, node: newNodeOn(b.t, tb, daemon.Options{
		Binary: binary, Path: []string{filepath.Dir(shim.Path)}, Parent: b.dir,
	})}
	n.ctx = n.context(testNS)
	n.each(size, n.runScaled)
	n.ctx = n.context(testNS)
	n.measureAt(rows, size)
	n.measureEnd(rows, size)
	shim.AwaitNoProcs()
	n.Stop()
}

func scaleID(i int) string { return fmt.Sprintf("scale-%05d", i) }

// runScaled runs a task without an image or a rootfs.
func (n *benchNode) runScaled(i int) error {
	group := map[string]string{"io.containerd.runc.v2.group": fmt.Sprint("g", i/perShim)}
	c, err := n.Client().NewContainer(n.ctx, scaleID(i), containerd.WithRuntime(runcName, nil),
		containerd.WithNewSpec(oci.WithProcessArgs("sleep"), oci.WithAnnotations(group)))
	if err != nil {
		return err
	}
	task, err := c.NewTask(n.ctx, cio.NullIO)
	if err != nil {
		return err
	}
	return task.Start(n.ctx)
}

// measureAt measures what can be measured without changing anything.
func (n *benchNode) measureAt(rows *scaleRows, size int) {
	c := &crowd{benchNode: n, pids: make([]uint32, size)}
	for range max(1, n.restartsAt(rows)) {
		ready, listed := c.restart()
		rows.sample(n.side, "ready after a restart", "ms", size, millis(ready))
		rows.sample(n.side, "all listed as running after a restart", "ms", size, millis(listed))
	}
	for range max(1, rows.b.asks/3) {
		begin := time.Now()
		require.NoError(n.t, c.list(n.ctx))
		rows.sample(n.side, "list", "ms", size, millis(time.Since(begin)))
	}
	_, goroutines := n.Usage()
	rows.sample(n.side, "daemon's goroutines", "", size, float64(goroutines))
	heap, err := n.LiveHeap()
	require.NoError(n.t, err)
	rows.sample(n.side, "daemon's live heap", "MiB", size, kib(heap)/1024)
	m, err := daemon.MemoryOf(n.Pid())
	require.NoError(n.t, err)
	rows.sample(n.side, "daemon's PSS", "MiB", size, kib(m.PSS)/1024)
}

func (n *benchNode) restartsAt(rows *scaleRows) int { return min(3, rows.b.restarts) }

// measureEnd ends all tasks at once, and then deletes all at once.
func (n *benchNode) measureEnd(rows *scaleRows, size int) {
	n.ctx = n.context(testNS)
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	events, failed := n.Client().Subscribe(ctx, `topic=="`+runtime.TaskExitEventTopic+`"`)
	n.awaitSubscribed(ctx, events)
	service := n.Client().TaskService()
	begin := time.Now()
	killed := n.allAtOnce(size, func(id string) error {
		_, err := service.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL)})
		return err
	})
	for exits := 0; exits < size; {
		select {
		case e := <-events:
			if !isProbe(e) {
				exits++
			}
		case err := <-failed:
			require.NoError(n.t, err, "the subscription has ended")
		case <-n.ctx.Done():
			require.Fail(n.t, "not all exits were told", "%d of %d", exits, size)
		}
	}
	require.NoError(n.t, killed())
	rows.sample(n.side, "all killed at once, until the last exit is heard", "ms", size, millis(time.Since(begin)))

	n.ctx = n.context(testNS)
	begin = time.Now()
	deleted := n.allAtOnce(size, func(id string) error {
		_, err := service.Delete(n.ctx, &tasks.DeleteTaskRequest{ContainerID: id})
		return err
	})
	require.NoError(n.t, deleted())
	rows.sample(n.side, "all deleted at once", "ms", size, millis(time.Since(begin)))
	n.ctx = n.context(testNS)
	n.each(size, func(i int) error {
		c, err := n.Client().LoadContainer(n.ctx, scaleID(i))
		if err != nil {
			return err
		}
		return c.Delete(n.ctx)
	})
}

// allAtOnce calls for all tasks; the returned function waits until all calls are answered.
func (n *benchNode) allAtOnce(size int, call func(id string) error) (wait func() error) {
	var g errgroup.Group
	g.SetLimit(256)
	done := make(chan error, 1)
	go func() {
		for i := range size {
			g.Go(func() error { return errors.Wrap(call(scaleID(i)), scaleID(i)) })
		}
		done <- g.Wait()
	}()
	return func() error { return <-done }
}
