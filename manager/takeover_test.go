// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// silentMethods are what a stopped shim does not answer.
var silentMethods = []string{"State", "Connect", "Wait"}

// TestWakingShim: whenever a shim goes on that had fallen silent, that is known at once.
func TestWakingShim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, i, p := connectedTask(t, "c1", ownPid())
		for n := range 60 {
			s.stall(silentMethods...)
			_, err := (&Task{i: i}).State(t.Context())
			require.NoError(t, err)
			time.Sleep(shimclient.DefaultDeadlines()["Connect"] + time.Duration(n)*97*time.Millisecond)
			synctest.Wait()
			require.Equal(t, shimproc.Unresponsive, processStateOf(p))
			s.resume(silentMethods...)
			synctest.Wait()
			require.Equal(t, shimproc.Connected, processStateOf(p), "round %d", n)
		}
	})
}

// TestProbesAreFew: one at a time, each with its deadline.
func TestProbesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, i, p := connectedTask(t, "c1", ownPid())
		s.stall(silentMethods...)
		_, err := (&Task{i: i}).State(t.Context())
		require.NoError(t, err)
		time.Sleep(time.Hour)
		require.LessOrEqual(t, s.count("Connect"), int(time.Hour/shimclient.DefaultDeadlines()["Connect"])+1)
		s.resume(silentMethods...)
		synctest.Wait()
		require.Equal(t, shimproc.Connected, processStateOf(p))
	})
}

// TestTakeoverOfAWakingShim: a task that was found while its shim was silent can be used as soon as that answers.
func TestTakeoverOfAWakingShim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		i, p := memTask(t, m, "c1", ownPid())
		i.state = life.Restoring
		s.stall(silentMethods...)
		require.NoError(t, p.OnConnected(s.connect()))
		m.spawn(i.takeOver)
		time.Sleep(time.Minute)
		require.Equal(t, shimproc.Unresponsive, processStateOf(p))
		s.resume(silentMethods...)
		synctest.Wait()
		st, _ := i.watch()
		require.Equal(t, life.Running, st)
	})
}

// TestWaitOfAnUnknownExec: containerd looks for an exec before it waits for it. Nobody has that exec on record, and its
// shim is silent.
func TestWaitOfAnUnknownExec(t *testing.T) {
	for _, open := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, i, p := connectedTask(t, "c1", ownPid())
			s.stall(silentMethods...)
			if open {
				fallSilent(p)
			}
			e, err := (&Task{i: i}).Process(t.Context(), "e1")
			require.NoError(t, err)
			w := make(chan waited, 1)
			go func() {
				exit, err := e.Wait(t.Context())
				w <- waited{exit, err}
			}()
			pending(t, w)
			s.exitWith(4, time.Now())
			s.resume(silentMethods...)
			ends(t, w, 4)
		})
	}
}
