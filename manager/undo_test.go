// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
)

// giveUp sends a Create whose caller gives up after 10 ms, as CRI's do, and undoes it as a create does.
func giveUp(t testing.TB, i *Instance) error {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := i.detached(ctx, func(ctx context.Context) error {
		_, err := i.sendCreate(ctx, &taskapi.CreateTaskRequest{ID: i.id})
		return err
	})
	i.m.abandon(ctx, i)
	return err
}

// stalledInAPod is a create of c1 in the shim s of a pod that began with pause, which leaves calls unanswered.
func stalledInAPod(t testing.TB, calls ...string) (s *memShim, pause, i *Instance) {
	s, pause, p := connectedTask(t, "pause", ownPid())
	i = joining(t, pause.m, p, "c1")
	s.stall(calls...)
	return s, pause, i
}

// TestGivenUpCreateInAPod: the caller is answered at once, the undo goes on behind it with the id reserved, and the
// next create of the id waits for it.
func TestGivenUpCreateInAPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, i := stalledInAPod(t, "Create", "Delete")
		m, p := i.m, i.process()
		before := time.Now()
		require.ErrorIs(t, giveUp(t, i), context.DeadlineExceeded)
		require.Equal(t, 10*time.Millisecond, time.Since(before), "nothing holds a caller that has given up")

		next := memInstance(m, "c1", life.Launching)
		reserved := make(chan error, 1)
		go func() { reserved <- m.reserve(t.Context(), next) }()
		s.exitWith(137, time.Now())
		s.resume("Create")
		synctest.Wait()
		require.Equal(t, 1, s.count("Delete"))
		require.Empty(t, reserved, "the id is not free before the shim has deleted")
		s.resume("Delete")
		synctest.Wait()
		require.NoError(t, <-reserved)
		require.Equal(t, life.Gone, stateOf(i))
		require.Len(t, p.Members(), 1)
		require.Zero(t, s.count("Shutdown"), "the pod goes on")
	})
}

// TestUndoRepeatsADelete that was not answered in time: what a shim keeps nobody would know of, and it could not end.
func TestUndoRepeatsADelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, i := stalledInAPod(t, "Create", "Delete")
		m := i.m
		require.Error(t, giveUp(t, i))
		s.resume("Create")
		time.Sleep(time.Hour)
		require.Equal(t, life.Reaping, stateOf(i))
		require.Greater(t, s.count("Delete"), 2)
		require.Less(t, s.count("Delete"), 100, "each waits in the shim behind the one before")
		err := m.reserve(t.Context(), memInstance(m, "c1", life.Launching))
		require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
		require.ErrorContains(t, err, "does not delete what a failed create has made")

		s.resume("Delete")
		time.Sleep(lastUndoPause)
		synctest.Wait()
		require.Equal(t, life.Gone, stateOf(i))
		require.Nil(t, m.find(testNamespace, "c1"))
	})
}

// TestPodRemovedDuringAnUndo: the shim is told to end by the last that leaves it, which is the undo. It would not end
// before.
func TestPodRemovedDuringAnUndo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, pause, i := stalledInAPod(t, "Create", "Delete")
		p := i.process()
		require.Error(t, giveUp(t, i))
		s.exitWith(137, time.Now())
		s.resume("Create")
		synctest.Wait()

		lingering, err := pause.releaseProcess(t.Context(), p, true)
		require.NoError(t, err)
		require.Nil(t, lingering)
		require.Zero(t, s.count("Shutdown"))
		require.Equal(t, life.Reaping, stateOf(i))
		s.resume("Delete")
		time.Sleep(timeout.Get(shimproc.TimeoutShutdown))
		synctest.Wait()
		require.Equal(t, 1, s.count("Shutdown"))
		require.Equal(t, life.Gone, stateOf(i))
		require.Equal(t, shimproc.Ended, processStateOf(p))
	})
}

// TestLateCreateInAPod: a Create that is answered long after its caller gave up is undone all the same.
func TestLateCreateInAPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, i := stalledInAPod(t, "Create")
		m := i.m
		require.Error(t, giveUp(t, i))
		time.Sleep(time.Hour)
		require.Equal(t, life.Reaping, stateOf(i))
		require.Zero(t, s.count("Delete"), "before there is anything it would be answered with NotFound")
		err := m.reserve(t.Context(), memInstance(m, "c1", life.Launching))
		require.ErrorContains(t, err, "has not answered the Create")

		s.exitWith(137, time.Now())
		s.resume("Create")
		synctest.Wait()
		require.Equal(t, 1, s.count("Delete"))
		require.Equal(t, life.Gone, stateOf(i))
	})
}

// TestCreatesThatHangInARemovedPod are ended with the shim, which has nothing else to lose.
func TestCreatesThatHangInARemovedPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, pause, i := stalledInAPod(t, "Create", "Delete", "Shutdown")
		m, p := i.m, i.process()
		require.Error(t, giveUp(t, i))
		other := joining(t, m, p, "c2")
		require.Error(t, giveUp(t, other))
		time.Sleep(time.Hour)
		require.Equal(t, shimproc.Connected, processStateOf(p), "the pod needs it")
		p.Leave(behind{pause}) // it is removed while they hang
		time.Sleep(createGrace + alonePause + timeout.Get(shimproc.TimeoutCleanup) + timeout.Get(shimproc.TimeoutShutdown))
		synctest.Wait()
		require.Equal(t, life.Gone, stateOf(i))
		require.Equal(t, life.Gone, stateOf(other))
		require.Equal(t, shimproc.Ended, processStateOf(p))
	})
}

// TestCreatesThatHangArePiledUp no higher than to a limit, and the shim gets them again when it has answered.
func TestCreatesThatHangArePiledUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, pause, p := connectedTask(t, "pause", ownPid())
		m := pause.m
		s.stall("Create")
		for n := range 3 * strandedLimit {
			err := giveUp(t, joining(t, m, p, "c"+strconv.Itoa(n)))
			require.Error(t, err)
			require.Equal(t, n >= strandedLimit, errdefs.IsUnavailable(err), "create %d: %v", n, err)
		}
		time.Sleep(createdGrace)
		synctest.Wait()
		require.Equal(t, strandedLimit, s.count("Create"))
		require.Len(t, m.instances, 1+strandedLimit)
		s.exitWith(137, time.Now())
		s.resume("Create")
		synctest.Wait()
		require.Len(t, m.instances, 1)
		require.NoError(t, giveUp(t, joining(t, m, p, "again")))
	})
}
