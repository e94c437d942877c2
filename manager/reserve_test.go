// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
)

func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memManager(t)
		for _, st := range []life.State{life.Launching, life.Restoring, life.Running} {
			other := memInstance(m, "c1", st)
			m.instances[other.key()] = other
			before := time.Now()
			err := m.reserve(t.Context(), memInstance(m, "c1", life.Launching))
			require.True(t, errdefs.IsAlreadyExists(err), "%s: %v", st, err)
			require.Zero(t, time.Since(before), "what is not ending is not waited for")
			require.Same(t, other, m.find(testNamespace, "c1"))
		}
		require.NoError(t, m.reserve(t.Context(), newInstance(m, noLayout, life.Task, "other", "c1", life.Launching)),
			"another namespace")
		box := newInstance(m, noLayout, life.Sandbox, testNamespace, "c1", life.Launching)
		require.True(t, errdefs.IsAlreadyExists(m.reserve(t.Context(), box)), "one id space for both kinds")
	})
}

// TestReserveWaitsForAnEnd: a create of an id that is being cleaned waits, then gets it.
func TestReserveWaitsForAnEnd(t *testing.T) {
	for _, st := range []life.State{life.Deleting, life.Reaping, life.Dead} {
		t.Run(st.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := memManager(t)
				old, next := memInstance(m, "c1", st), memInstance(m, "c1", life.Launching)
				m.instances[old.key()] = old
				time.AfterFunc(time.Second, func() { m.forget(old) })
				require.NoError(t, m.reserve(t.Context(), next))
				require.Same(t, next, m.find(testNamespace, "c1"))
			})
		})
	}
}

// TestReserveNamesWhatIsLeft: when cleaning takes longer than the timeout the id stays with the old one, and the error
// says why.
func TestReserveNamesWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memManager(t)
		old := memInstance(m, "c1", life.Reaping)
		old.remains.SetLeft(errors.New("rootfs is not empty"))
		m.instances[old.key()] = old
		err := m.reserve(t.Context(), memInstance(m, "c1", life.Launching))
		require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
		require.ErrorContains(t, err, "rootfs is not empty")
		require.Same(t, old, m.find(testNamespace, "c1"))

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		err = m.reserve(ctx, memInstance(m, "c1", life.Launching))
		require.ErrorIs(t, err, context.Canceled)
		require.Same(t, old, m.find(testNamespace, "c1"))
	})
}

// TestReserveAfterAFailedDelete: the one that was to end goes on.
func TestReserveAfterAFailedDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memManager(t)
		old, _ := memTask(t, m, "c1", 0)
		old.state = life.Deleting
		time.AfterFunc(time.Second, func() { old.onDeleteFailed() })
		err := m.reserve(t.Context(), memInstance(m, "c1", life.Launching))
		require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
		st, _ := old.watch()
		require.Equal(t, life.Running, st)
	})
}

// TestReserveOnlyOnce: of many who want an id that becomes free, one gets it.
func TestReserveOnlyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memManager(t)
		old := memInstance(m, "c1", life.Deleting)
		m.instances[old.key()] = old
		errs := make(chan error, 10)
		for range 10 {
			go func() { errs <- m.reserve(t.Context(), memInstance(m, "c1", life.Launching)) }()
		}
		synctest.Wait()
		m.forget(old)
		got := 0
		for range 10 {
			if err := <-errs; err == nil {
				got++
			} else {
				require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
			}
		}
		require.Equal(t, 1, got)
	})
}
