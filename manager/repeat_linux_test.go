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

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// owed is how often the exit of init is still to be told again.
func owed(i *Instance) int {
	synctest.Wait()
	return i.ledger.Exit("").Owed
}

// youngTask is a task with an exec, of a daemon that has just been started.
func youngTask(t *testing.T) *Instance {
	t.Helper()
	m := memManager(t)
	m.desk.Started = ago(0)
	i, _ := memTask(t, m, "c1", 200)
	i.ledger.ExecAdded("e1")
	i.ledger.ExecStarted("e1", 201)
	return i
}

// TestExitToldByAYoungDaemon is told again at growing pauses, three times, while its task is there. Later ones are told
// once.
func TestExitToldByAYoungDaemon(t *testing.T) {
	for name, tell := range map[string]func(*Instance){
		"by the shim":    func(i *Instance) { i.onExitEvent("", exitOf(200, 7)) },
		"by the manager": func(i *Instance) { i.ledger.LearnExit(exitOf(200, 7)); i.tellExits("replay") },
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
				requireNoLoop(t, "repeat")
				require.LessOrEqual(t, i.ledger.Exit("").Tries, 1)

				i.onExitEvent("e1", exitOf(201, 7))
				require.True(t, i.ledger.Exit("e1").Told)
				require.Zero(t, i.ledger.Exit("e1").Owed, "the daemon is old")
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
				requireNoLoop(t, "repeat")
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

// TestRepeatsOfAnExec end with its own Delete.
func TestRepeatsOfAnExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := youngTask(t)
		i.onExitEvent("", exitOf(200, 7))
		i.onExitEvent("e1", exitOf(201, 3))
		time.Sleep(firstRepeatPause)
		synctest.Wait()
		require.Equal(t, repeats-1, i.ledger.Exit("e1").Owed)
		i.ledger.ForgetExec(i.ledger.ExecOf("e1"))
		time.Sleep(time.Minute)
		require.Zero(t, owed(i))
	})
}

// TestRepeatsOverARestart: what the last daemon owed when it ended is told by the next, which begins its pauses anew.
func TestRepeatsOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := youngTask(t)
		i.ledger.ForgetExec(i.ledger.ExecOf("e1"))
		e := exitOf(200, 7)
		e.Told, e.Owed, e.Spoken = true, 2, time.Now().Add(-time.Hour)
		edit(i, func(r *bundle.Record) { r.Task.Exit = &e })
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
		endFirst, ok := i.beginSpeaking()
		require.True(t, ok)
		endSecond, ok := i.beginSpeaking()
		require.True(t, ok)
		i.onDelete(false)
		_, ok = i.beginSpeaking()
		require.False(t, ok)
		silent := make(chan struct{})
		go func() { i.ledger.AwaitSilence(); close(silent) }()
		endFirst()
		synctest.Wait()
		require.False(t, isClosed(silent))
		endSecond()
		<-silent
		i.ledger.AwaitSilence()
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
		edit(i, func(r *bundle.Record) { r.Task.Exit.Spoken = time.Now().Add(-time.Hour) })
		y.grow()
		i.repeatNow()
	}
	first := y.events.await("c1", runtime.TaskExitEventTopic, 1)[0]
	y.until("the exit is told", func() bool { e := i.ledger.Exit(""); return e != nil && e.Told })
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

// TestOOMThatTheShimTold reaches who subscribes later, before the exit, also where the cgroup is gone with init.
func TestOOMThatTheShimTold(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{})
	y.young = true
	y.boot()
	task := y.create("c1", "die", "KILL")
	i := y.instance("c1")
	require.NoError(t, y.m.config.Events.Publish(y.ctx, oomTopic, &apievents.TaskOOM{ContainerID: "c1"}))
	y.until("it is heard", func() bool { return i.ledger.Record().Task.OOM })
	y.until("it is told again", func() bool { return len(y.topicsOf("c1")) > 1 })
	require.NoError(t, task.Start(y.ctx))
	y.until("the exit is told", func() bool { e := i.ledger.Exit(""); return e != nil && e.Told })
	before := y.topicsOf("c1")
	require.Equal(t, exitTopic, before[len(before)-1])
	require.Equal(t, oomTopic, before[len(before)-2])
	edit(i, func(r *bundle.Record) { r.Task.Exit.Spoken = time.Now().Add(-time.Hour) })
	y.grow()
	i.repeatNow()
	require.Equal(t, []string{oomTopic, exitTopic}, y.topicsOf("c1")[len(before):])
	y.remove("c1")
	y.empty()
}
