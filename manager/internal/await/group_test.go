// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package await_test

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/await"
)

// isClosed is asked inside of a bubble, after synctest.Wait.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestGroupMayGrowWhileItIsDrained(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g await.Group
		first, second := make(chan struct{}), make(chan struct{})
		g.Go(func() {
			<-first
			g.Go(func() { <-second })
		})
		done := g.Drain()
		close(first)
		synctest.Wait()
		require.False(t, isClosed(done), "the second was begun by the first, and is waited for")
		leave, ok := g.Enter()
		require.True(t, ok)
		close(second)
		synctest.Wait()
		require.False(t, isClosed(done), "a call is under way")
		leave()
		require.True(t, isClosed(done))
		require.Equal(t, done, g.Drain())
	})
}

func TestGroupThatIsDrainedTakesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g await.Group
		require.True(t, isClosed(g.Drain()), "nothing was under way")
		leave, ok := g.Enter()
		require.False(t, ok)
		leave()
		ran := make(chan struct{})
		g.Go(func() { close(ran) })
		<-ran
		synctest.Wait()
		require.True(t, isClosed(g.Drain()))
	})
}
