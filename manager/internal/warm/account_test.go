// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestTakeGivesTheOneUsedLast, and those of another key never.
func TestTakeGivesTheOneUsedLast(t *testing.T) {
	inBubble(t, Config[string]{}, func(o *owner) {
		o.idle("k", "a", "b")
		o.idle("other", "c")
		e, idleFor := o.Take("k")
		require.Equal(o, "b", e.Shim)
		require.Equal(o, 2*time.Second, idleFor)
		e, idleFor = o.Take("k")
		require.Equal(o, "a", e.Shim)
		require.Equal(o, 3*time.Second, idleFor)
		e, _ = o.Take("k")
		require.Nil(o, e)
		o.waits("c")
	})
}

// TestShare: a shim that others have, and that has room, comes before an idle one.
func TestShare(t *testing.T) {
	inBubble(t, Config[string]{}, func(o *owner) {
		shared := o.Enter("shared", "k", Limits{Warm: 2, Reuse: 1, Share: 3})
		o.Put(shared, 1)
		o.idle("k", "idle")
		for range 2 {
			e, idleFor := o.Take("k")
			require.Same(o, shared, e)
			require.Zero(o, idleFor)
		}
		e, _ := o.Take("k")
		require.Equal(o, "idle", e.Shim, "three tasks have the other one")

		require.True(o, o.Keep(shared))
		require.False(o, o.Back(shared, func() int { return 2 }))
		e, _ = o.Take("k")
		require.Same(o, shared, e, "for the first time after one has left it")
		require.False(o, o.Keep(shared), "that was the last time it may")
		_, why := o.asked()
		require.Equal(o, []string{WhyWorn}, why)
	})
}

// TestReuse: so many tasks after the first.
func TestReuse(t *testing.T) {
	for _, reuse := range []int{0, 1, 3} {
		inBubble(t, Config[string]{}, func(o *owner) {
			e := o.Enter("w", "k", Limits{Warm: 1, Reuse: reuse})
			o.Put(e, 1)
			for range reuse {
				require.True(o, o.Keep(e))
				o.Back(e, func() int { return 0 })
				got, _ := o.Take("k")
				require.Same(o, e, got)
			}
			require.False(o, o.Keep(e))
			_, why := o.asked()
			require.Equal(o, []string{WhyWorn}, why)
		})
	}
}

// TestCeiling: of all keys together, and counting those that are about to be idle.
func TestCeiling(t *testing.T) {
	inBubble(t, Config[string]{Limit: 2}, func(o *owner) {
		o.idle("k", "a")
		leaving := o.Enter("b", "other", limits)
		o.Put(leaving, 1)
		require.True(o, o.Keep(leaving))
		require.Equal(o, 2, o.taken())
		o.idle("third", "c")
		ended, why := o.asked()
		require.Equal(o, []string{"c"}, ended)
		require.Equal(o, []string{WhyCeiling}, why)
		require.False(o, o.Back(leaving, func() int { return 0 }))
		o.waits("a", "b")
		o.Take("k")
		o.idle("third", "d")
		o.waits("b", "d")
	})
}

// TestIdleTime: a shim that no create wants ends, and one less is kept ahead; a task in between begins the time anew.
func TestIdleTime(t *testing.T) {
	inBubble(t, Config[string]{}, func(o *owner) {
		own := o.miss("k")
		o.waits("spare1")
		time.Sleep(idleTime - time.Second)
		e, _ := o.Take("k")
		require.Equal(o, "spare1", e.Shim)
		require.True(o, o.Keep(e))
		o.Back(e, func() int { return 0 })
		time.Sleep(idleTime - time.Second)
		o.waits("spare1")
		time.Sleep(time.Second)
		o.waits()
		ended, why := o.asked()
		require.Equal(o, []string{"spare1"}, ended)
		require.Equal(o, []string{WhyIdle}, why)
		require.False(o, o.hasShelf("k"), "a key that no create needs is forgotten")
		o.Refill("k", o.spare("k"))
		o.waits()
		o.GiveUp(own)
	})
}

// TestClose ends what is idle, and nothing else; what comes later is ended too.
func TestClose(t *testing.T) {
	inBubble(t, Config[string]{}, func(o *owner) {
		serving := o.Enter("serving", "k", limits)
		o.Put(serving, 1)
		o.idle("k", "a", "b")
		o.Close()
		ended, why := o.asked()
		require.Equal(o, []string{"a", "b"}, ended)
		require.Equal(o, []string{WhyStop, WhyStop}, why)
		require.Equal(o, Serving, o.stateOf(serving))
		e, _ := o.Take("k")
		require.Nil(o, e)
		o.Put(o.Enter("late", "k", limits), 0)
		require.False(o, o.Keep(serving))
		ended, why = o.asked()
		require.Equal(o, []string{"late"}, ended)
		require.Equal(o, []string{WhyStop, WhyStop}, why)
	})
}

// TestCloseAmidADelete: a shim that may go on without its task, and has not left it yet, is none of the idle ones that
// Close ends; it is ended when it has.
func TestCloseAmidADelete(t *testing.T) {
	inBubble(t, Config[string]{}, func(o *owner) {
		e := o.Enter("leaving", "k", limits)
		o.Put(e, 1)
		require.True(o, o.Keep(e))
		o.Close()
		ended, _ := o.asked()
		require.Empty(o, ended, "the task's instance is in it")
		require.True(o, o.Back(e, func() int { return 0 }), "Close is over, so that only the caller can end it")
		_, why := o.asked()
		require.Equal(o, []string{WhyStop}, why)
		o.waits()
	})
}

// TestManyAtOnce: no shim has more tasks than it may, and in the end each place is an idle shim's.
func TestManyAtOnce(t *testing.T) {
	for _, share := range []int{1, 3} {
		o := newOwner(t, Config[string]{Limit: 5})
		limits := Limits{Warm: 3, Reuse: 20, Share: share}
		var made atomic.Int64
		var mu sync.Mutex
		in := make(map[entry]int)
		enter := func(e entry, by int) int {
			mu.Lock()
			defer mu.Unlock()
			in[e] += by
			require.LessOrEqual(t, in[e], 2*share, "tasks, and those that leave")
			return in[e]
		}
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(n), 1))
				for range 300 {
					e, _ := o.Take("k")
					if e == nil {
						e = o.Enter(fmt.Sprint(made.Add(1)), "k", limits)
						o.Missed("k", limits.Warm)
						o.Put(e, 1)
					}
					enter(e, 1)
					if r.IntN(20) == 0 {
						enter(e, -1)
						o.GiveUp(e)
						continue
					}
					if o.Keep(e) {
						o.Back(e, func() int { return enter(e, -1) })
					} else {
						enter(e, -1)
					}
				}
			})
		}
		wg.Wait()
		require.Equal(t, len(o.Waiting()), o.taken())
		require.LessOrEqual(t, o.taken(), 5)
		o.Close()
	}
}
