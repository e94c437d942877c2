// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestWaitOutlasts: nothing that happens to a connection, a shim's answers or the daemon ends a Wait.
func TestWaitOutlasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		i, p := memTask(t, m, "c1", 77)
		w := startWait(t.Context(), i, "")
		pending(t, w) // not connected at all

		conn := s.connect()
		require.NoError(t, p.OnConnected(conn))
		pending(t, w)
		require.Equal(t, 1, s.count("Wait"))
		require.Zero(t, s.count("Connect"), "no Connect before a Wait")

		_ = conn.Close()
		p.OnLost()
		pending(t, w)
		require.NoError(t, p.OnConnected(s.connect()))
		pending(t, w)
		require.Equal(t, 2, s.count("Wait"), "it is sent again, once")

		fallSilent(p)
		pending(t, w)

		require.NoError(t, m.Close())
		pending(t, w)
		s.exitWith(3, time.Now())
		ends(t, w, 3)
		require.Equal(t, uint32(3), i.ledger.Exit("").Status, "it is on record")
		require.Equal(t, uint32(77), i.ledger.Exit("").Pid)
	})
}

// TestWaitAsksAgain: an error that says nothing of the process is not passed on; CRI would take it for exit 255.
func TestWaitAsksAgain(t *testing.T) {
	for _, code := range []codes.Code{codes.Unknown, codes.Internal, codes.Unavailable, codes.DeadlineExceeded,
		codes.Canceled} {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, i, _ := connectedTask(t, "c1", 77)
				s.fail("Wait", code, "ttrpc: closed")
				w := startWait(t.Context(), i, "")
				pending(t, w)
				require.Greater(t, s.count("Wait"), 1)
				s.well("Wait")
				s.exitWith(4, time.Now())
				ends(t, w, 4)
			})
		})
	}
}

func TestWaitEndsWithTheShimsWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, i, _ := connectedTask(t, "c1", 77)
		s.fail("Wait", codes.NotFound, "no such exec")
		w := <-startWait(t.Context(), i, "e1")
		require.True(t, errdefs.IsNotFound(w.err), "%v", w.err)
		s.fail("Wait", codes.Unimplemented, "")
		w = <-startWait(t.Context(), i, "")
		require.True(t, errdefs.IsNotImplemented(w.err), "%v", w.err)
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		i, p := memTask(t, m, "c1", 77)
		for range 2 { // without a connection, then with one
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			w := <-startWait(ctx, i, "")
			cancel()
			require.ErrorIs(t, w.err, context.DeadlineExceeded)
			require.NoError(t, p.OnConnected(s.connect()))
		}
	})
}

// TestWaitHearsTheEvent: an exit event answers all Waits at once, though the shim does not.
func TestWaitHearsTheEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		i, p := memTask(t, m, "c1", 77)
		first := startWait(t.Context(), i, "")
		require.NoError(t, p.OnConnected(s.connect()))
		second := startWait(t.Context(), i, "")
		pending(t, second)
		i.onExitEvent("", exitOf(77, 5))
		ends(t, first, 5)
		ends(t, second, 5)
		ends(t, startWait(t.Context(), i, ""), 5)
	})
}

// TestDeathAnswersWaits: init's exit as it was found, 255 for execs that nobody saw exit, and what was seen stays.
func TestDeathAnswersWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		i, p := memTask(t, m, "c1", 77)
		for n, id := range []string{"e1", "e2", "e3"} {
			i.ledger.ExecAdded(id)
			if id != "e3" { // e3 was never started
				i.ledger.ExecStarted(id, uint32(100+n))
			}
		}
		i.onExitEvent("e2", exitOf(101, 9))
		conn := s.connect()
		require.NoError(t, p.OnConnected(conn))
		init, e1 := startWait(t.Context(), i, ""), startWait(t.Context(), i, "e1")
		e2, e3 := startWait(t.Context(), i, "e2"), startWait(t.Context(), i, "e3")
		ends(t, e2, 9)
		pending(t, init)

		_ = conn.Close()
		p.OnLost()
		require.True(t, i.onDeath())
		pending(t, init) // until the exit is known
		pending(t, e1)
		i.ledger.LearnDeath(exitOf(77, 255))
		ends(t, init, 255)
		ends(t, e1, 255)
		w := <-e3
		require.True(t, errdefs.IsNotFound(w.err), "%v", w.err)
		require.Equal(t, uint32(100), i.ledger.Exit("e1").Pid)
		require.Equal(t, uint32(9), i.ledger.Exit("e2").Status)
	})
}

// TestWaitOfWhatIsGone: there is nothing to wait for.
func TestWaitOfWhatIsGone(t *testing.T) {
	shimtest.CheckLeaks(t)
	for _, st := range []life.State{life.Reaping, life.Gone} {
		i := memInstance(memManager(t), "c1", st)
		_, err := i.wait(t.Context(), "")
		require.True(t, errdefs.IsNotFound(err), "%s: %v", st, err)
		i.ledger.LearnExit(exitOf(1, 6))
		exit, err := i.wait(t.Context(), "")
		require.NoError(t, err)
		require.Equal(t, uint32(6), exit.Status, "an exit on record is told even then")
	}
}

// TestWaitOfARestoringTask is pending until the shim is there.
func TestWaitOfARestoringTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := newMemShim(t), memManager(t)
		i, p := memTask(t, m, "c1", 77)
		i.state = life.Restoring
		w := startWait(t.Context(), i, "")
		pending(t, w)
		s.fail("Wait", codes.NotFound, "starting up")
		require.NoError(t, p.OnConnected(s.connect()))
		pending(t, w)
		s.well("Wait")
		s.exitWith(2, time.Now())
		ends(t, w, 2)
	})
}
