// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package await

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestRetry: each pause is about twice the one before, up to the last; nothing is tried again after a success.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var at []time.Duration
		require.True(t, Retry(t.Context(), Pauses{time.Second, 4 * time.Second}, func() bool {
			at = append(at, time.Since(begin))
			return len(at) == 6
		}))
		require.Zero(t, at[0], "the first attempt is made at once")
		for n, about := range []time.Duration{1, 2, 4, 4, 4} {
			pause := at[n+1] - at[n]
			require.GreaterOrEqual(t, pause, about*time.Second/2)
			require.Less(t, pause, about*time.Second*3/2)
		}
	})
}

// TestRetriesAreSpread: what has failed together is not tried again together.
func TestRetriesAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		again := make(chan time.Duration)
		const together = 8
		for range together {
			go RetryLater(t.Context(), Pauses{time.Second, time.Second}, func() bool {
				again <- time.Since(begin)
				return true
			})
		}
		at := make(map[time.Duration]struct{})
		for range together {
			at[<-again] = struct{}{}
		}
		require.Greater(t, len(at), 1)
	})
}

// TestRetryEndsWithItsContext in a pause; what has succeeded by then counts.
func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		tries := 0
		require.False(t, Retry(ctx, Pauses{time.Hour, time.Hour}, func() bool { tries++; return false }))
		require.Equal(t, 1, tries)
		require.True(t, Retry(ctx, Pauses{}, func() bool { return true }))
		require.False(t, RetryLater(ctx, Pauses{time.Hour, time.Hour}, func() bool { return true }))
	})
}
