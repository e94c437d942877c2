// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// fedManager follows what the test feeds it.
func fedManager(t *testing.T) (*ShimManager, chan<- *events.Envelope) {
	t.Helper()
	m := memManager(t)
	ch := make(chan *events.Envelope)
	errs := make(chan error)
	m.follower.Follow(ch, errs, m.heard)
	t.Cleanup(func() { close(errs) })
	return m, ch
}

// stoppedTask is a task whose exit is known and was not heard.
func stoppedTask(t *testing.T, m *ShimManager, id string) *Instance {
	t.Helper()
	i, _ := memTask(t, m, id, 200)
	e := exitOf(200, 7)
	edit(i, func(r *bundle.Record) { r.Task.Exit = &e })
	return i
}

// TestBacklogOfEvents: what a shim told in time is known before its manager speaks for it, though thousands of events
// are before that. They come one a millisecond here, as over a daemon that is short of CPU.
func TestBacklogOfEvents(t *testing.T) {
	for name, judge := range map[string]func(*Instance){
		"after an orderly delete": (*Instance).tellLate,
		"after a death": func(i *Instance) {
			if i.waitInFlight() {
				i.tell()
			}
		},
		"an exit that was learnt from an answer": func(i *Instance) {
			edit(i, func(r *bundle.Record) { r.Task.Exit.At = time.Now().Add(-ownRetries) })
			i.replay()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, ch := fedManager(t)
				i := stoppedTask(t, m, "c1")
				before := time.Now()
				exit := exitEvent("c1", "c1", 200, 7)
				exit.ExitedAt = timestamppb.New(i.ledger.Exit("").At)
				go func() {
					for range 5000 {
						ch <- sent(t, before, exitEvent("other", "other", 1, 0))
						time.Sleep(time.Millisecond)
					}
					ch <- sent(t, before, exit)
					ch <- sent(t, before, &apievents.TaskDelete{ContainerID: "c1", Pid: 200, ExitStatus: 7})
				}()
				time.Sleep(time.Millisecond)
				judge(i)
				require.True(t, i.ledger.Exit("").Told)
				require.True(t, i.ledger.Exit("").DeleteTold)
				require.Zero(t, i.ledger.Exit("").Tries, "the shim has told it")
			})
		})
	}
}

// TestStreamOfEvents that does not end does not keep the manager from speaking: what was sent after the moment in
// question tells that all before it is known. A clock that is ahead tells nothing.
func TestStreamOfEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ch := fedManager(t)
		i := stoppedTask(t, m, "c1")
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for !isClosed(stop) {
				ch <- sent(t, time.Now().Add(-time.Millisecond), exitEvent("other", "other", 1, 0))
				time.Sleep(5 * time.Millisecond)
			}
		}()
		i.tellLate()
		require.Equal(t, 1, i.ledger.Exit("").Tries)
		require.True(t, i.ledger.Exit("").DeleteTold)
		close(stop)
		<-stopped
		ch <- sent(t, time.Now().Add(time.Hour), exitEvent("other", "other", 1, 0))
		synctest.Wait()
		require.False(t, m.follower.Passed(time.Now()))
	})
}

// TestEventsWhileADiskIsSlow: the write of one record keeps no other event from being heard, and what was heard
// meanwhile is written once.
func TestEventsWhileADiskIsSlow(t *testing.T) {
	shimtest.CheckLeaks(t)
	m, ch := fedManager(t)
	slow, _ := memTask(t, m, "slow", 200)
	slow.ledger.ExecAdded("e1")
	slow.ledger.ExecStarted("e1", 201)
	other, _ := memTask(t, m, "other", 300)
	layout := bundle.Layout{State: t.TempDir(), Root: t.TempDir()}
	var err error
	slow.bundle, err = layout.Create(testNamespace, "slow", bundle.CreateOptions{})
	require.NoError(t, err)
	slow.ledger.Save()
	var mu sync.Mutex
	var writes []func() // that have not begun
	m.desk.Spawn = func(f func()) {
		mu.Lock()
		defer mu.Unlock()
		writes = append(writes, f)
	}
	for _, e := range []any{
		exitEvent("slow", "e1", 201, 1), exitEvent("slow", "slow", 200, 2),
		&apievents.TaskDelete{ContainerID: "slow", Pid: 200}, exitEvent("other", "other", 300, 3),
	} {
		select {
		case ch <- sent(t, time.Now(), e):
		case <-time.After(time.Minute):
			require.Fail(t, "nobody listens while a record is being written")
		}
	}
	<-other.ledger.Exited()
	require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(writes) > 1 }, time.Minute,
		time.Millisecond, "one for each task")
	require.True(t, slow.ledger.Exit("e1").Told)
	require.True(t, slow.ledger.Exit("").DeleteTold)
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, writes, 2, "one for each task")
	onDisk := func() *bundle.Record {
		rec, err := slow.bundle.ReadRecord()
		require.NoError(t, err)
		return rec
	}
	require.Nil(t, onDisk().Task.Exit)
	for _, write := range writes {
		write()
	}
	written := onDisk()
	require.True(t, written.Execs["e1"].Exit.Told)
	require.True(t, written.Task.Exit.Told)
	require.True(t, written.Task.Exit.DeleteTold)
}
