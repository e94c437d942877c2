// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"testing/synctest"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// owed is how often the exit of init is still to be told again.
func owed(i *Instance) int {
	synctest.Wait()
	return i.ledger.exit("").Owed
}

// youngTask is a task with an exec, of a daemon that has just been started.
func youngTask(t *testing.T) *Instance {
	t.Helper()
	m := memManager(t)
	m.started = time.Now()
	i, _ := memTask(t, m, "c1", 200)
	i.ledger.execAdded("e1")
	i.ledger.execStarted("e1", 201)
	return i
}

// TestExitToldByAYoungDaemon is told again at growing pauses, three times, while its task is there. Later ones are told
// once.
func TestExitToldByAYoungDaemon(t *testing.T) {
	for name, tell := range map[string]func(*Instance){
		"by the shim":    func(i *Instance) { i.onExitEvent("", exitOf(200, 7)) },
		"by the manager": func(i *Instance) { i.ledger.learnExit(exitOf(200, 7)); i.tellExits("replay") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := youngTask(t)
				tell(i)
				for n := repeats; n > 0; n-- {
					require.Equal(t, n, owed(i))
					time.Sleep(firstRepeatPause<<(repeats-n) - time.Millisecond)
					require.Equal(t, n, owed(i))
					time.Sleep(time.Millisecond)
				}
				require.Zero(t, owed(i))
				i.onExitEvent("", exitOf(200, 7)) // the repeat comes back from the exchange
				time.Sleep(time.Hour)
				require.Zero(t, owed(i))
				require.False(t, i.ledger.telling.repeating)
				require.LessOrEqual(t, i.ledger.exit("").Tries, 1)

				i.onExitEvent("e1", exitOf(201, 7))
				require.True(t, i.ledger.exit("e1").Told)
				require.Zero(t, i.ledger.exit("e1").Owed, "the daemon is old")
			})
		})
	}
}

// TestRepeatsEndWithTheTask: none is told after Delete. A Delete that is under way holds them up, and one that fails
// does not end them.
func TestRepeatsEndWithTheTask(t *testing.T) {
	for name, end := range map[string]func(*Instance){
		"deleted here":        func(i *Instance) { i.onDelete(false); i.onGone() },
		"deleted in the shim": func(i *Instance) { i.onDeleteEvent(200) },
		"its shim is dead":    func(i *Instance) { i.onDeath() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := youngTask(t)
				i.onExitEvent("", exitOf(200, 7))
				time.Sleep(firstRepeatPause)
				require.Equal(t, repeats-1, owed(i))
				end(i)
				time.Sleep(time.Hour)
				require.Equal(t, repeats-1, owed(i))
				require.False(t, i.ledger.telling.repeating)
			})
		})
	}
	t.Run("a Delete fails", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := youngTask(t)
			i.onExitEvent("", exitOf(200, 7))
			i.onDelete(false)
			time.Sleep(time.Minute)
			require.Equal(t, repeats, owed(i))
			i.onDeleteFailed()
			time.Sleep(time.Minute)
			require.Zero(t, owed(i))
		})
	})
}

// TestRepeatsOfAnExec end with its own Delete, and come before init's.
func TestRepeatsOfAnExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := youngTask(t)
		i.onExitEvent("", exitOf(200, 7))
		i.onExitEvent("e1", exitOf(201, 3))
		i.mu.Lock()
		ids, _ := i.ledger.owedLocked()
		i.mu.Unlock()
		require.Equal(t, []string{"e1", ""}, ids)
		time.Sleep(firstRepeatPause)
		synctest.Wait()
		require.Equal(t, repeats-1, i.ledger.exit("e1").Owed)
		i.ledger.execDeleted("e1", i.ledger.execOf("e1"))
		time.Sleep(time.Minute)
		require.Zero(t, owed(i))
	})
}

// TestRepeatsOverARestart: what the last daemon owed when it ended is told by the next, which begins its pauses anew.
func TestRepeatsOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := youngTask(t)
		i.ledger.execDeleted("e1", i.ledger.execOf("e1"))
		e := exitOf(200, 7)
		e.Told, e.Owed, e.Spoken = true, 2, time.Now().Add(-time.Hour)
		i.ledger.rec.Task.Exit = &e
		close(i.ledger.exited)
		i.replayFound()
		time.Sleep(2*firstRepeatPause - time.Millisecond)
		require.Equal(t, 2, owed(i))
		time.Sleep(time.Millisecond)
		require.Equal(t, 1, owed(i))
		time.Sleep(time.Minute)
		require.Zero(t, owed(i))
	})
}

// TestDeleteWaitsForARepeat that has begun, so that none comes after it.
func TestDeleteWaitsForARepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := youngTask(t)
		require.True(t, i.beginSpeaking())
		require.True(t, i.beginSpeaking())
		i.onDelete(false)
		require.False(t, i.beginSpeaking())
		silent := make(chan struct{})
		go func() { i.ledger.awaitSilence(); close(silent) }()
		i.ledger.endSpeaking()
		synctest.Wait()
		require.False(t, isClosed(silent))
		i.ledger.endSpeaking()
		<-silent
		i.ledger.awaitSilence()
	})
}

// TestRepeatsAreIdentical as subscribers hear them, and none is told of a task that is deleted.
func TestRepeatsAreIdentical(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{})
	y.young = true
	y.boot()
	task := y.create("c1", "exit", "7")
	require.NoError(t, task.Start(y.ctx))
	i := y.instance("c1")
	hurry := func() {
		i.mu.Lock()
		i.ledger.rec.Task.Exit.Spoken = time.Now().Add(-time.Hour)
		i.mu.Unlock()
		y.grow()
		i.repeatNow()
	}
	first := y.events.await("c1", runtime.TaskExitEventTopic, 1)[0]
	y.until("the exit is told", func() bool { e := i.ledger.exit(""); return e != nil && e.Told })
	for n := range repeats {
		hurry()
		require.Equal(t, first, y.events.await("c1", runtime.TaskExitEventTopic, n+2)[n+1])
	}
	hurry()
	y.remove("c1")
	i.repeatNow()
	y.events.settle()
	require.Len(t, y.events.of("c1", runtime.TaskExitEventTopic), 1+repeats)
	y.empty()
}

// TestOOMToldToAYoungDaemon: the shim's TaskOOM comes before clients have subscribed again, its exit after. It is told
// again until the exit is told, from when on it comes with the exit's repeats.
func TestOOMToldToAYoungDaemon(t *testing.T) {
	due := func(i *Instance) time.Time {
		synctest.Wait()
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.ledger.telling.oomDue
	}
	t.Run("until the exit is told", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := youngTask(t)
			i.onExitEvent("e1", exitOf(201, 7)) // whose repeat is due later
			for range 3 {
				i.onOOMEvent(time.Now()) // the shim's, then the repeat that comes back from the exchange
				require.Equal(t, time.Now().Add(oomPause), due(i))
				time.Sleep(oomPause)
			}
			require.Equal(t, time.Now().Add(oomPause), due(i))
			i.onExitEvent("", exitOf(200, exitKilled))
			require.Zero(t, due(i))
			i.onOOMEvent(time.Now())
			require.Zero(t, due(i))
			time.Sleep(time.Hour)
			i.mu.Lock()
			defer i.mu.Unlock()
			require.False(t, i.ledger.telling.repeating)
		})
	})
	t.Run("until the daemon is old", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := youngTask(t)
			i.onOOMEvent(time.Now())
			time.Sleep(youth)
			require.Zero(t, due(i))
			i.onOOMEvent(time.Now())
			require.Zero(t, due(i))
			require.True(t, i.ledger.rec.Task.OOM)
		})
	})
	t.Run("of an earlier task", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := youngTask(t)
			i.ledger.rec.Begun = time.Now()
			i.onOOMEvent(time.Now().Add(-time.Second))
			require.Zero(t, due(i))
			require.False(t, i.ledger.rec.Task.OOM)
		})
	})
}

// TestOOMThatTheShimTold reaches who subscribes later, before the exit, also where the cgroup is gone with init.
func TestOOMThatTheShimTold(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{})
	y.young = true
	y.boot()
	task := y.create("c1", "die", "KILL")
	i := y.instance("c1")
	require.NoError(t, y.m.config.Events.Publish(y.ctx, oomTopic, &apievents.TaskOOM{ContainerID: "c1"}))
	y.until("it is heard", func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return !i.ledger.telling.oomDue.IsZero()
	})
	y.until("it is told again", func() bool { return len(y.topicsOf("c1")) > 1 })
	require.NoError(t, task.Start(y.ctx))
	y.until("the exit is told", func() bool { e := i.ledger.exit(""); return e != nil && e.Told })
	before := y.topicsOf("c1")
	require.Equal(t, exitTopic, before[len(before)-1])
	require.Equal(t, oomTopic, before[len(before)-2])
	i.mu.Lock()
	i.ledger.rec.Task.Exit.Spoken = time.Now().Add(-time.Hour)
	i.mu.Unlock()
	y.grow()
	i.repeatNow()
	require.Equal(t, []string{oomTopic, exitTopic}, y.topicsOf("c1")[len(before):])
	y.remove("c1")
	y.empty()
}
