// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// inCgroup lets a task have a memory cgroup in which so many processes were killed, before it began and by now.
func (y *yard) inCgroup(id string, before, now int) {
	y.Helper()
	dir := y.path("cgroup-" + id)
	require.NoError(y, os.MkdirAll(dir, 0o700))
	events := fmt.Sprintf("oom 1\noom_kill %d\n", now)
	require.NoError(y, os.WriteFile(filepath.Join(dir, "memory.events"), []byte(events), 0o600))
	i := y.instance(id)
	edit(i, func(r *bundle.Record) { r.Task.Cgroup, r.Task.OOMKills = dir, uint64(before) })
	i.ledger.Save()
}

// TestOOMBeforeAReplayedExit is told if the cgroup knows that init was ended for it.
func TestOOMBeforeAReplayedExit(t *testing.T) {
	for _, c := range []struct {
		name        string
		args        []string
		before, now int
		want        []string
	}{
		{"killed for lack of memory", []string{"die", "KILL"}, 0, 1, []string{oomTopic, exitTopic}},
		{"killed by somebody", []string{"die", "KILL"}, 0, 0, []string{exitTopic}},
		{"another was killed before it began", []string{"die", "KILL"}, 2, 2, []string{exitTopic}},
		{"ended by itself", []string{"exit", "1"}, 0, 1, []string{exitTopic}},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t, deaf())
			task := y.create("c1", c.args...)
			y.inCgroup("c1", c.before, c.now)
			require.NoError(t, task.Start(y.ctx))
			_, err := task.Wait(y.ctx)
			require.NoError(t, err)
			i := y.instance("c1")
			edit(i, func(r *bundle.Record) { r.Task.Exit.At = time.Now().Add(-ownRetries) })
			i.replay()
			require.Equal(t, c.want, y.topicsOf("c1"))
			y.remove("c1")
			y.empty()
		})
	}
}

// TestOOMBeforeARepeatedExit: whoever has missed the one has missed the other.
func TestOOMBeforeARepeatedExit(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{})
	y.young = true
	y.boot()
	task := y.create("c1", "die", "KILL")
	y.inCgroup("c1", 0, 1)
	require.NoError(t, task.Start(y.ctx))
	i := y.instance("c1")
	y.until("the exit is told", func() bool { e := i.ledger.Exit(""); return e != nil && e.Told })
	y.grow()
	edit(i, func(r *bundle.Record) { r.Task.Exit.Spoken = time.Now().Add(-time.Hour) })
	i.repeatNow()
	require.Equal(t, []string{exitTopic, oomTopic, exitTopic}, y.topicsOf("c1"))
	y.remove("c1")
	y.empty()
}

// TestOOMOfATaskThatIsDeletedAtOnce after the daemon's start, as CRI does with what it finds stopped: the reason is
// told before the cgroup goes, once.
func TestOOMOfATaskThatIsDeletedAtOnce(t *testing.T) {
	y := newYard(t, deaf())
	y.create("c1", "die", "KILL")
	y.inCgroup("c1", 0, 1)
	y.restart()
	task, err := y.tasks.Get(y.ctx, "c1")
	require.NoError(t, err)
	require.NoError(t, task.Start(y.ctx))
	y.kill(task)
	exit := y.remove("c1")
	require.EqualValues(t, ledger.ExitKilled, exit.Status)
	y.empty()
	topics := y.topicsOf("c1")
	require.Equal(t, oomTopic, topics[0], "%v", topics)
	require.NotContains(t, topics[1:], oomTopic)
}

// TestOOMOfATaskWhoseShimIsDead is told before its exit if init had ended before anybody ended it.
func TestOOMOfATaskWhoseShimIsDead(t *testing.T) {
	for _, before := range []bool{true, false} {
		t.Run(fmt.Sprintf("init ended before: %t", before), func(t *testing.T) {
			y := newYard(t, deaf())
			task := y.create("c1", "sleep")
			y.inCgroup("c1", 0, 1)
			require.NoError(t, task.Start(y.ctx))
			if before {
				y.kill(task)
			}
			require.NoError(t, y.shim.Daemon("c1").Kill())
			y.events.await("c1", deleteTopic, 1)
			y.empty()
			want := []string{exitTopic, deleteTopic}
			if before {
				want = []string{oomTopic, exitTopic, deleteTopic}
			}
			require.Equal(t, want, y.topicsOf("c1"))
		})
	}
}
