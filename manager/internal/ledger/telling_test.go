// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
)

// TestReplayBegins once, however many exits are learnt, and anew once it has ended.
func TestReplayBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := running(t)
		began := func() int32 {
			time.Sleep(InFlight)
			synctest.Wait()
			return k.replays.Load()
		}
		l.LearnExecExit(l.ExecOf("e1"), exitOf(0, 1))
		l.LearnExit(exitOf(200, 2))
		require.EqualValues(t, 1, began())
		due, ok := l.ReplayDue(life.Running)
		require.True(t, ok)
		require.Equal(t, l.Exit("").At.Add(ownRetries), due)
		l.TellLater()
		require.EqualValues(t, 1, began(), "it goes on")

		_, ok = l.ReplayDue(life.Deleting)
		require.False(t, ok, "it has ended")
		l.TellLater() // the Delete has failed
		require.EqualValues(t, 2, began())

		require.True(t, l.HearExit(life.Running, "e1", exitOf(201, 1)))
		require.True(t, l.HearExit(life.Running, "", exitOf(200, 2)))
		_, ok = l.ReplayDue(life.Running)
		require.False(t, ok, "all is told")
		l.TellLater()
		require.EqualValues(t, 2, began(), "nothing is untold")
	})
}

// TestReplayOfASandbox: its exit is not for the manager to tell.
func TestReplayOfASandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := newLedger(t)
		l.tells = false
		l.LearnExit(exitOf(0, 0))
		l.TellLater()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Zero(t, k.replays.Load())
		require.Zero(t, k.repeats.Load())
	})
}

// TestTries: what may have been told, for all that is on record, is told three times at most.
func TestTries(t *testing.T) {
	l, _ := running(t)
	_, ok := l.CountTry("")
	require.False(t, ok, "nothing is known")
	l.LearnExit(exitOf(200, 2))
	for range maxTries {
		e, ok := l.CountTry("")
		require.True(t, ok)
		require.EqualValues(t, 2, e.Status)
	}
	_, ok = l.CountTry("")
	require.False(t, ok)
	_, ok = l.ReplayDue(life.Running)
	require.False(t, ok)
}

// TestRepeats come in order, execs first, and each is counted before it is told.
func TestRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := running(t)
		require.True(t, l.HearExit(life.Running, "", exitOf(200, 7)))
		require.True(t, l.HearExit(life.Running, "e1", exitOf(201, 3)))
		synctest.Wait()
		require.EqualValues(t, 1, k.repeats.Load())
		for n := range repeats {
			due, ok := l.RepeatDue(life.Running)
			require.True(t, ok)
			require.Equal(t, firstRepeatPause<<n, time.Until(due))
			time.Sleep(time.Until(due))
			_, ids := l.TakeRepeats()
			require.Equal(t, []string{"e1", ""}, ids)
			require.Equal(t, repeats-1-n, l.Exit("").Owed)
			_, ids = l.TakeRepeats()
			require.Empty(t, ids)
		}
		_, ok := l.RepeatDue(life.Running)
		require.False(t, ok)
	})
}

// TestRepeatsAndTheStage: a Delete that is under way may fail, so they are not given up for it.
func TestRepeatsAndTheStage(t *testing.T) {
	for s, want := range map[life.State]bool{life.Dead: false, life.Launching: false, life.Restoring: true, life.Running: true, life.Deleting: true} {
		l, _ := running(t)
		l.HearExit(life.Running, "", exitOf(200, 7))
		_, ok := l.RepeatDue(s)
		require.Equal(t, want, ok, "%s", s)
	}
}

// TestSpeaking is possible until a Delete is claimed, which can wait for its end.
func TestSpeaking(t *testing.T) {
	for s, want := range map[life.State]bool{life.Dead: false, life.Launching: false, life.Restoring: true, life.Running: true, life.Deleting: false} {
		l, _ := running(t)
		end, ok := l.BeginSpeaking(s)
		require.Equal(t, want, ok, "%s", s)
		if ok {
			end()
		}
		l.AwaitSilence()
	}
	l, _ := running(t)
	l.MarkDeleted()
	_, ok := l.BeginSpeaking(life.Running)
	require.False(t, ok)
}

// TestOOMToldToAYoungDaemon: the shim's TaskOOM comes before clients have subscribed again, its exit after. It is told
// again until the exit is told, from when on it comes with the exit's repeats.
func TestOOMToldToAYoungDaemon(t *testing.T) {
	due := func(l *Ledger) time.Time {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.telling.oomDue
	}
	t.Run("until the exit is told", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, k := running(t)
			l.HearExit(life.Running, "e1", exitOf(201, 7)) // whose repeat is due later
			synctest.Wait()
			news := l.News()
			for range 3 {
				l.HearOOM(time.Now())
				require.True(t, isClosed(news), "a repeat that waits for the exec's exit has to look again")
				at, ok := l.RepeatDue(life.Running)
				require.True(t, ok)
				require.Equal(t, time.Now().Add(oomPause), at)
				time.Sleep(oomPause)
				news = l.News()
				oom, ids := l.TakeRepeats()
				require.True(t, oom)
				require.Empty(t, ids)
			}
			require.Equal(t, time.Now().Add(oomPause), due(l))
			l.HearExit(life.Running, "", exitOf(200, ExitKilled))
			require.Zero(t, due(l))
			l.HearOOM(time.Now()) // the repeat comes back from the exchange
			require.Zero(t, due(l))
			require.True(t, l.TakeOOM(true))
			synctest.Wait()
			require.EqualValues(t, 1, k.repeats.Load())
		})
	})
	t.Run("until the daemon is old", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, _ := running(t)
			l.HearOOM(time.Now())
			time.Sleep(youth)
			oom, _ := l.TakeRepeats()
			require.True(t, oom)
			require.Zero(t, due(l))
			require.False(t, l.HearOOM(time.Now()), "it is known")
			require.Zero(t, due(l))
			require.True(t, l.Record().Task.OOM)
		})
	})
	t.Run("of an earlier task", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, _ := running(t)
			rec := l.Record()
			rec.Begun = time.Now()
			l.Load(rec)
			require.False(t, l.HearOOM(time.Now().Add(-time.Second)))
			require.Zero(t, due(l))
			require.False(t, l.Record().Task.OOM)
		})
	})
}
