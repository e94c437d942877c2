// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
)

// testKeeper is an instance that counts what it is asked for.
type testKeeper struct {
	ctx              context.Context
	bundle           *bundle.Bundle
	replays, repeats atomic.Int32
}

func (k *testKeeper) Context() context.Context { return k.ctx }
func (k *testKeeper) Bundle() *bundle.Bundle   { return k.bundle }

// newLedger is that of a task of a daemon that has just begun.
func newLedger(t *testing.T) (*Ledger, *testKeeper) {
	t.Helper()
	ctx := t.Context()
	k := &testKeeper{ctx: ctx}
	started := time.Now()
	d := Desk{
		Started: func() time.Time { return started }, Spawn: func(f func()) { go f() },
		Sleep: func(d time.Duration) bool {
			select {
			case <-time.After(d):
				return true
			case <-ctx.Done():
				return false
			}
		},
		Replay: func(Keeper) { k.replays.Add(1) }, Repeat: func(Keeper) { k.repeats.Add(1) },
	}
	return New(NewDesk(d), k, true), k
}

// running is a ledger of a task that runs with pid 200, and an exec e1 with pid 201.
func running(t *testing.T) (*Ledger, *testKeeper) {
	t.Helper()
	l, k := newLedger(t)
	l.Load(&bundle.Record{Created: true, Task: &bundle.TaskState{Status: "RUNNING", Pid: 200}})
	l.ExecAdded("e1")
	l.ExecStarted("e1", 201)
	return l, k
}

// onDisk has the ledger write its record into a bundle.
func onDisk(t *testing.T, k *testKeeper) bundle.Layout {
	t.Helper()
	layout := bundle.Layout{State: t.TempDir(), Root: t.TempDir()}
	b, err := layout.Create("testing", "c1", bundle.CreateOptions{})
	require.NoError(t, err)
	k.bundle = b
	return layout
}

func exitOf(pid, status uint32) bundle.Exit {
	return bundle.Exit{Pid: pid, Status: status, At: time.Now().UTC()}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
