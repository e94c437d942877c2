// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/manager/inspect"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// scaleEnv includes the tests of this file, which take minutes and gigabytes.
const scaleEnv = "SHIMYARD_SCALE"

func needScale(t *testing.T) {
	t.Helper()
	if os.Getenv(scaleEnv) == "" {
		t.Skipf("takes minutes; make scale runs it (%s=1)", scaleEnv)
	}
	needRoot(t)
}

// A daemon that restarts among many running containers, with some of their
// shims stalled. What it takes is printed beside the start of an empty daemon.
func TestScaleFake(t *testing.T) {
	needScale(t)
	// In the place of runc's, which is vouched for.
	shim := shimtest.Install(t, shimtest.Scenario{}, shimtest.WithName(filepath.Base(kit.shim)))
	address := freeAddress(t)
	n := newNode(t, withMetrics(address))
	n.Stop()
	n.Reconfigure(func(o *daemon.Options) { o.Path = []string{filepath.Dir(shim.Path)} })
	n.Run()
	n.scale(address, 300, 20, []setupOpt{spec("sleep")}, "exit", "5")
	shim.AwaitNoProcs()
}

// The same with real containers, fewer of them.
func TestScaleRunc(t *testing.T) {
	needScale(t)
	address := freeAddress(t)
	newNode(t, withMetrics(address)).scale(address, 100, 20, []setupOpt{forever()}, five...)
}

// scale does it. address is where the daemon serves its metrics.
func (n *node) scale(address string, count, stalled int, opts []setupOpt, use ...string) {
	t := n.t
	empty := n.timeStarts()
	jobs := make([]*job, count)
	n.each(count, func(i int) (err error) {
		jobs[i], err = n.tryRun(fmt.Sprintf("scale-%03d", i), opts...)
		return err
	})
	n.ctx = n.context(testNS) // the creates have used up much of the patience
	full := n.timeStarts()
	n.timeLists("with none stalled", count)
	var shims []int
	for _, j := range jobs[:stalled] {
		shims = append(shims, n.stall(j.ID()))
	}
	before := len(n.shims())
	require.Equal(t, count, before, "each container has a shim")
	defer resume(shims)
	bad := n.timeStarts()
	t.Logf("ready with none running: %s; with %d running: %s, %.2f × that; with %d of them stalled: %s, %.2f × that",
		empty, count, full, float64(full)/float64(empty), stalled, bad, float64(bad)/float64(empty))

	// As it has just started, and when it has made up its mind.
	n.timeLists("with some stalled, at once", count)
	n.stays("all are listed", func() bool { return len(n.listed()) == count })
	n.timeLists("with some stalled, later", count)
	n.timeCommands(address, count)
	for _, j := range jobs {
		require.True(t, runs(j.Pid()), "%s is gone", j.ID())
	}
	require.Len(t, n.shims(), count, "shims")

	begin := time.Now()
	resume(shims)
	n.each(stalled, func(i int) error {
		var err error
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(tick) {
			if err = n.use(jobs[i].ID(), jobs[i].Pid(), use...); err == nil {
				return nil
			}
		}
		return errors.Wrapf(err, "cannot use %s", jobs[i].ID())
	})
	t.Logf("all %d stalled usable (each has run a process) %s after SIGCONT", stalled,
		time.Since(begin).Round(time.Millisecond))
	n.each(count, func(i int) error { return n.use(jobs[i].ID(), jobs[i].Pid(), use...) })
	n.each(count, func(i int) error { return n.end(jobs[i].ID()) })
	require.Empty(t, n.Leftovers())
	scrapeFew(t, address)
}

// timeStarts kills and starts the daemon some times; the median until it
// serves.
func (n *node) timeStarts() time.Duration {
	n.t.Helper()
	var took []time.Duration
	for range 5 {
		n.Kill()
		begin := time.Now()
		n.Run()
		took = append(took, time.Since(begin))
		time.Sleep(time.Second) // what it does behind its readiness is not the next one's
	}
	slices.Sort(took)
	return took[len(took)/2].Round(time.Millisecond)
}

// timeLists lists some times, and checks that all is there and running.
func (n *node) timeLists(when string, count int) {
	n.t.Helper()
	var took []time.Duration
	for range 9 {
		begin := time.Now()
		list, err := n.Client().TaskService().List(n.ctx, &tasks.ListTasksRequest{})
		took = append(took, time.Since(begin))
		require.NoError(n.t, err)
		require.Len(n.t, list.Tasks, count, when)
		for _, p := range list.Tasks {
			require.Equal(n.t, tasktypes.Status_RUNNING, p.Status, "%s: %s", when, p.ID)
		}
	}
	first := took[0]
	slices.Sort(took)
	n.t.Logf("list of %d %s: first %s, median %s, best %s", count, when,
		first.Round(time.Millisecond), took[len(took)/2].Round(time.Millisecond), took[0].Round(time.Millisecond))
}

// timeCommands asks as `containerd shims` does, over a connection that stands, and requires that no shim is called for
// it. What it takes is in integration/bench/README.md.
func (n *node) timeCommands(address string, count int) {
	n.t.Helper()
	// What the restore has sent to shims that are stalled is under way until its deadline.
	before := callsIn(scrape(n.t, address))
	require.Eventually(n.t, func() bool {
		time.Sleep(2 * shimclient.DefaultDeadlines()["State"])
		last := before
		before = callsIn(scrape(n.t, address))
		return slices.Equal(last, before)
	}, patience, tick, "shims are called all the time")
	require.NotEmpty(n.t, before)
	q, err := typeurl.MarshalAnyToProto(&inspect.ListRequest{Processes: true})
	require.NoError(n.t, err)
	var took []time.Duration
	for range 9 {
		begin := time.Now()
		r, err := n.Client().IntrospectionService().PluginInfo(n.ctx, "io.containerd.runtime.v2", "task", q)
		took = append(took, time.Since(begin))
		require.NoError(n.t, err)
		var list inspect.ListResponse
		require.NoError(n.t, typeurl.UnmarshalTo(r.Extra, &list))
		require.Len(n.t, list.Instances, count)
	}
	slices.Sort(took)
	n.t.Logf("containerd shims, the daemon's answer on %d: best %s, median %s, worst %s", count,
		took[0].Round(100*time.Microsecond), took[len(took)/2].Round(100*time.Microsecond),
		took[len(took)-1].Round(100*time.Microsecond))
	for _, command := range []string{"ls", "check"} {
		begin := time.Now()
		out, _, _ := n.askShims(command)
		n.t.Logf("containerd shims %s, all of the program's run: %s, %d lines", command,
			time.Since(begin).Round(time.Millisecond), strings.Count(out, "\n"))
	}
	require.Equal(n.t, before, callsIn(scrape(n.t, address)), "a shim was called")
}

// each runs f for 0 to count-1, some at once.
func (n *node) each(count int, f func(int) error) {
	n.t.Helper()
	var g errgroup.Group
	g.SetLimit(8)
	for i := range count {
		g.Go(func() error { return f(i) })
	}
	require.NoError(n.t, g.Wait())
}

// end kills a task, waits for it and deletes it with its container.
func (n *node) end(id string) error {
	c, err := n.Client().LoadContainer(n.ctx, id)
	if err != nil {
		return err
	}
	task, err := c.Task(n.ctx, nil)
	if err != nil {
		return err
	}
	if s, err := task.Delete(n.ctx, containerd.WithProcessKill); err != nil {
		return err
	} else if s.ExitCode() != 137 {
		return errors.Errorf("%s has exited with %d", id, s.ExitCode())
	}
	return c.Delete(n.ctx, containerd.WithSnapshotCleanup)
}

// An exit during a long downtime, after which the shim has given up on telling
// it, is told once to one who listens after the start.
func TestScaleExitWhileDown(t *testing.T) {
	needScale(t)
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			j := n.run("ends", obedient(7))
			pid := j.Pid()
			end(n)
			n.letExit("ends")
			require.Eventually(t, func() bool { return !runs(pid) }, patience, tick)
			time.Sleep(time.Minute)
			n.Run()
			log := n.watch()
			j = n.taskOf("ends")
			s, err := j.Status(n.ctx)
			require.NoError(t, err)
			require.Equal(t, containerd.Stopped, s.Status)
			require.EqualValues(t, 7, s.ExitStatus)
			log.waitFor("/tasks/exit", "ends")
			n.stays("told once", func() bool { return log.count("/tasks/exit", "ends") == 1 })
			told := log.of("ends")[0].exit
			require.EqualValues(t, 7, told.ExitStatus)
			require.Equal(t, pid, told.Pid)
			require.Equal(t, s.ExitTime, told.ExitedAt.AsTime())
			require.EqualValues(t, 7, j.remove().ExitCode())
			log.waitFor("/tasks/delete", "ends")
			require.Equal(t, 1, log.count("/tasks/exit", "ends"))
		})
	}
}

// Shims that are killed one after the other, half of them after their
// containers have exited.
func TestScaleShimKills(t *testing.T) {
	needScale(t)
	const count = 50
	n := newNode(t)
	log := n.watch()
	code := func(i int) uint32 {
		if i%2 == 0 {
			return 137
		}
		return uint32(i)
	}
	id := func(i int) string { return fmt.Sprint("victim-", i) }
	for i := range count {
		command := forever()
		if i%2 == 1 {
			command = shell(fmt.Sprint("exit ", i))
		}
		b := n.create(id(i), command)
		task, err := b.NewTask(n.ctx, cio.NullIO)
		require.NoError(t, err)
		j := &job{Task: task, b: b}
		shim := n.shimPid(testNS, id(i))
		j.start()
		if i%2 == 1 {
			log.waitFor("/tasks/exit", id(i))
		}
		require.NoError(t, unix.Kill(shim, unix.SIGKILL))
		log.waitFor("/tasks/delete", id(i))
		b.awaitGone()
		b.remove()
	}
	n.stays("each is told once", func() bool {
		for i := range count {
			if log.count("/tasks/exit", id(i)) != 1 || log.count("/tasks/delete", id(i)) != 1 {
				return false
			}
		}
		return true
	})
	for i := range count {
		for _, e := range log.of(id(i)) {
			if e.exit != nil {
				require.Equal(t, code(i), e.exit.ExitStatus, "the exit event of %s", id(i))
			}
			if e.deleted != nil {
				require.Equal(t, code(i), e.deleted.ExitStatus, "the delete event of %s", id(i))
			}
		}
	}
}

// Two hundred creates at once: each is answered, however few shims there are to take, and none waits for the others to
// be over.
func TestScaleCreatesAtOnce(t *testing.T) {
	needScale(t)
	const count = 200
	n := newNode(t)
	boxes := make([]*box, count)
	n.each(count, func(i int) (err error) {
		boxes[i], err = n.tryCreate(fmt.Sprintf("at-once-%03d", i), forever())
		return err
	})
	n.ctx = n.context(testNS)
	var g errgroup.Group
	begin := time.Now()
	took := make([]time.Duration, count)
	for i, b := range boxes {
		g.Go(func() error {
			_, err := b.NewTask(n.ctx, cio.NullIO)
			took[i] = time.Since(begin)
			return errors.Wrap(err, b.ID())
		})
	}
	require.NoError(t, g.Wait())
	slices.Sort(took)
	t.Logf("%d creates at once: first after %s, median %s, last %s", count,
		took[0].Round(time.Millisecond), took[count/2].Round(time.Millisecond), took[count-1].Round(time.Millisecond))
	require.Len(t, n.shims(), count, "shims")
	n.each(count, func(i int) error { return n.end(boxes[i].ID()) })
	require.Empty(t, n.Leftovers())
}
