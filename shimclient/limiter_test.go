// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLimiterServesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, time.Hour)
		turn, err := l.acquire(t.Context())
		require.NoError(t, err)
		served := make(chan int, 5)
		for i := range 5 {
			go func() {
				turn, err := l.acquire(t.Context())
				if err == nil {
					served <- i
					turn.End()
				}
			}()
			synctest.Wait() // it is in the queue now
		}
		turn.End()
		for i := range 5 {
			require.Equal(t, i, <-served)
		}
	})
}

func TestLimiterWaitIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, time.Hour)
		turn, err := l.acquire(t.Context())
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := l.acquire(ctx)
			failed <- err
		}()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-failed, context.Canceled)
		// The one that gave up holds no place.
		turn.End()
		turn, err = l.acquire(t.Context())
		require.NoError(t, err)
		turn.End()
	})
}

func TestLimiterExemptsTheSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, time.Minute)
		slow, err := l.acquire(t.Context())
		require.NoError(t, err)
		begin := time.Now()
		next, err := l.acquire(t.Context())
		require.NoError(t, err)
		require.Equal(t, time.Minute, time.Since(begin))
		// The slow one's end gives no second slot.
		slow.End()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = l.acquire(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		next.End()
	})
}

func TestTurnThatIsMadeShorter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, time.Hour)
		turn, err := l.acquire(t.Context())
		require.NoError(t, err)
		time.Sleep(time.Minute)
		turn.Within(time.Second)
		begin := time.Now()
		next, err := l.acquire(t.Context())
		require.NoError(t, err)
		require.Equal(t, time.Second, time.Since(begin))
		turn.Within(time.Minute) // it is over
		turn.End()
		next.End()
		last, err := l.acquire(t.Context())
		require.NoError(t, err)
		last.End()

		var none *Turn
		none.Within(0)
		none.End()
	})
}
