// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
)

// TestExitThatTheShimDoesNotTell but has answered with is told once, when the shim has given up on that. Those of execs
// are, too.
func TestExitThatTheShimDoesNotTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := answeredTask(t, memManager(t))
		ends(t, startWait(t.Context(), i, "e1"), 3)
		ends(t, startWait(t.Context(), i, ""), 3)
		require.Equal(t, uint32(78), i.ledger.Exit("e1").Pid)
		time.Sleep(ownRetries - time.Second)
		synctest.Wait()
		require.Equal(t, []string{"e1", ""}, i.ledger.Untold(), "not yet, and the exec's goes first")
		time.Sleep(10 * time.Minute)
		for _, id := range []string{"e1", ""} {
			require.True(t, i.ledger.Exit(id).Told, "%q", id)
			require.Equal(t, 1, i.ledger.Exit(id).Tries, "%q", id)
			require.Equal(t, uint32(3), i.ledger.Exit(id).Status, "%q", id)
		}
		require.False(t, i.ledger.Exit("").DeleteTold)
		requireNoLoop(t, "replay")
	})
}

// TestExitThatTheShimTells in time, before or after its answer, is not told by anybody else.
func TestExitThatTheShimTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := answeredTask(t, memManager(t))
		ends(t, startWait(t.Context(), i, "e1"), 3)
		ends(t, startWait(t.Context(), i, ""), 3)
		time.Sleep(ownRetries / 2)
		i.onExitEvent("e1", exitOf(78, 3))
		i.onExitEvent("", exitOf(77, 3))
		synctest.Wait()
		requireNoLoop(t, "replay")
		time.Sleep(10 * time.Minute)
		require.Zero(t, i.ledger.Exit("e1").Tries)
		require.Zero(t, i.ledger.Exit("").Tries)
	})
}

// TestExitOfADeletedTask is not told any more.
func TestExitOfADeletedTask(t *testing.T) {
	for _, st := range []life.State{life.Deleting, life.Reaping, life.Gone} {
		t.Run(st.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := answeredTask(t, memManager(t))
				ends(t, startWait(t.Context(), i, ""), 3)
				time.Sleep(ownRetries / 2)
				putInto(i, st)
				time.Sleep(10 * time.Minute)
				require.Zero(t, i.ledger.Exit("").Tries)
				requireNoLoop(t, "replay")
			})
		})
	}
}

// TestExitAfterAFailedDelete: the task is there again, and its exit is still to be told.
func TestExitAfterAFailedDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := answeredTask(t, memManager(t))
		before, _ := i.onDelete(false)
		require.Equal(t, life.Running, before)
		i.ledger.LearnExit(exitOf(77, 3))
		time.Sleep(2 * ownRetries)
		require.Zero(t, i.ledger.Exit("").Tries)
		i.onDeleteFailed()
		synctest.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 1, i.ledger.Exit("").Tries)
	})
}

// TestExitOfAnExec whose Wait is answered before its Start is.
func TestExitOfAnExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := answeredTask(t, memManager(t))
		i.ledger.ExecAdded("e2")
		ends(t, startWait(t.Context(), i, "e2"), 3)
		i.ledger.ExecStarted("e2", 79)
		require.Equal(t, uint32(79), i.ledger.Exit("e2").Pid)
		i.onExitEvent("e2", exitOf(79, 3))
		require.True(t, i.ledger.Exit("e2").Told)
		i.ledger.ForgetExec(i.ledger.ExecOf("e2"))
		require.Nil(t, i.ledger.Exit("e2"))
	})
}
