// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
)

// TestDemand: each create that finds no shim lets one more be kept ahead, up to what config says; one that was given is
// replaced.
func TestDemand(t *testing.T) {
	inBubble(t, Config[string]{}, func(o *owner) {
		o.miss("k")
		o.waits("spare1")
		for _, want := range [][]string{{"spare2", "spare3"}, {"spare4", "spare5"}} {
			for range len(o.Waiting()) {
				o.Take("k")
			}
			o.miss("k")
			o.waits(want...)
		}
		e, _ := o.Take("k")
		require.NotNil(o, e)
		o.Refill("k", o.spare("k"))
		synctest.Wait()
		require.Len(o, o.Waiting(), 2)
	})
}

// TestSparesGiveWay: while creates wait for their turn no spare is started; once none does they are, without a create.
func TestSparesGiveWay(t *testing.T) {
	var busy atomic.Bool
	busy.Store(true)
	inBubble(t, Config[string]{Busy: busy.Load}, func(o *owner) {
		o.miss("k")
		time.Sleep(time.Minute)
		o.waits()
		require.Zero(o, o.started)
		busy.Store(false)
		time.Sleep(time.Second)
		o.waits("spare1")

		busy.Store(true)
		o.Take("k")
		o.miss("k")
		o.Close()
		o.waits()
		require.Equal(o, 1, o.started)
	})
}

// TestSpareThatFails: its place is free again, and none is tried before a create has missed a shim.
func TestSpareThatFails(t *testing.T) {
	inBubble(t, Config[string]{}, func(o *owner) {
		o.failing = true
		own := o.miss("k")
		o.waits()
		require.Equal(o, 1, o.started)
		o.Refill("k", o.spare("k"))
		o.waits()
		require.Equal(o, 1, o.started)
		o.failing = false
		o.miss("k")
		o.waits("spare2")
		o.GiveUp(own)
	})
}

// TestSparesThatFailAreLoggedOnce, and again once one of them could be started.
func TestSparesThatFailAreLoggedOnce(t *testing.T) {
	inBubble(t, Config[string]{}, func(o *owner) {
		logger, hook := logtest.NewNullLogger()
		o.ctx = log.WithLogger(o.ctx, logrus.NewEntry(logger))
		for _, failing := range []bool{true, true, true, false, true, true} {
			o.failing = failing
			own := o.miss("k")
			o.GiveUp(own)
			if e, _ := o.Take("k"); e != nil {
				o.GiveUp(e)
			}
		}
		require.Len(o, hook.AllEntries(), 2)
	})
}

// TestSparesHavePlaces while they are being started.
func TestSparesHavePlaces(t *testing.T) {
	inBubble(t, Config[string]{Limit: 1}, func(o *owner) {
		o.miss("k")
		o.waits("spare1")
		o.miss("other")
		require.Equal(o, 1, o.started, "there is no place for a spare of another key")
		o.Take("k")
		o.Refill("other", o.spare("other"))
		o.waits("spare2")
	})
}

// TestSpareThatDiesWhileItIsStarted is not put on the shelf, and its place is free.
func TestSpareThatDiesWhileItIsStarted(t *testing.T) {
	inBubble(t, Config[string]{Limit: 1}, func(o *owner) {
		o.Missed("k", 1)
		first := true
		o.Refill("k", func(ctx context.Context) (entry, error) {
			e, err := o.spare("k")(ctx)
			if first {
				o.Died(e)
			}
			first = false
			return e, err
		})
		o.waits("spare2")
		ended, why := o.asked()
		require.Equal(o, []string{"spare1"}, ended)
		require.Equal(o, []string{WhyDied}, why)
	})
}

// TestNoSparesAfterClose: a start that is under way is cancelled.
func TestNoSparesAfterClose(t *testing.T) {
	inBubble(t, Config[string]{}, func(o *owner) {
		o.Missed("k", 2)
		o.Refill("k", func(ctx context.Context) (entry, error) {
			o.started++
			<-ctx.Done()
			return nil, ctx.Err()
		})
		synctest.Wait()
		o.Close()
		o.waits()
		o.Missed("k", 2)
		o.Refill("k", o.spare("k"))
		o.waits()
		require.Equal(o, 1, o.started)
	})
}

// TestRefused is for a minute, and for that binary alone.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Refused[int]
		require.False(t, r.Has(1))
		r.Add(1)
		time.Sleep(refusalTime)
		require.True(t, r.Has(1))
		require.False(t, r.Has(2))
		time.Sleep(time.Nanosecond)
		require.False(t, r.Has(1))
		require.Empty(t, r.at)
	})
}
