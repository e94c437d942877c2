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
		release, err := l.acquire(t.Context())
		require.NoError(t, err)
		turn := make(chan int, 5)
		for i := range 5 {
			go func() {
				release, err := l.acquire(t.Context())
				if err == nil {
					turn <- i
					release()
				}
			}()
			synctest.Wait() // it is in the queue now
		}
		release()
		for i := range 5 {
			require.Equal(t, i, <-turn)
		}
	})
}

func TestLimiterWaitIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, time.Hour)
		release, err := l.acquire(t.Context())
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
		release()
		release, err = l.acquire(t.Context())
		require.NoError(t, err)
		release()
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
		slow()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = l.acquire(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		next()
	})
}
