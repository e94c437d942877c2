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

// TestUntilLooksAgain when any of the channels wakes it, and then alone.
func TestUntilLooksAgain(t *testing.T) {
	for n := range (Wake{}) {
		synctest.Test(t, func(t *testing.T) {
			looks, ch := 0, make(chan struct{})
			ended := make(chan error)
			go func() {
				ended <- Until(t.Context(), func() (Wake, bool) {
					looks++
					var w Wake
					w[n] = ch
					return w, looks == 2
				})
			}()
			synctest.Wait()
			require.Equal(t, 1, looks)
			close(ch)
			require.NoError(t, <-ended)
			require.Equal(t, 2, looks)
		})
	}
}

// TestUntilAContextEnds: what is there already counts.
func TestUntilAContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, Until(ctx, func() (Wake, bool) { return Wake{}, true }))
	require.ErrorIs(t, Until(ctx, func() (Wake, bool) { return Wake{}, false }), context.Canceled)
}

// TestSleep ends with its context.
func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.True(t, Sleep(ctx, time.Second))
		begin := time.Now()
		require.False(t, Sleep(ctx, time.Hour))
		require.Equal(t, 59*time.Second, time.Since(begin))
	})
}

// TestUntilDue looks again when the time has passed that the look before named, and not for that where it named none.
func TestUntilDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var at []time.Duration
		wake := make(chan struct{})
		time.AfterFunc(time.Hour, func() { close(wake) })
		pauses := []time.Duration{time.Second, time.Minute, 0, 0}
		require.NoError(t, UntilDue(t.Context(), func() (Wake, time.Duration, bool) {
			at = append(at, time.Since(begin))
			n := len(at) - 1
			if n < 2 {
				return Wake{}, pauses[n], false
			}
			return Wake{wake}, pauses[n], n == 3
		}))
		require.Equal(t, []time.Duration{0, time.Second, time.Minute + time.Second, time.Hour}, at)
	})
}
