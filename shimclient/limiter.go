// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// limiter bounds how many commands run at once, first come first served.
type limiter struct {
	slots   *semaphore.Weighted
	exempt  time.Duration
	waiting atomic.Int64
}

// newLimiter makes a limiter of n slots (0: two per CPU). A holder gives its
// slot back after the time exempt even if it is not done, so that a few hung
// helpers do not stop all others.
func newLimiter(n int, exempt time.Duration) *limiter {
	if n <= 0 {
		n = 2 * runtime.GOMAXPROCS(0)
	}
	return &limiter{slots: semaphore.NewWeighted(int64(n)), exempt: exempt}
}

// acquire waits for a slot; ctx ends the wait with its error. release must be
// called once the command is over.
func (l *limiter) acquire(ctx context.Context) (release func(), err error) {
	l.waiting.Add(1)
	err = l.slots.Acquire(ctx, 1)
	l.waiting.Add(-1)
	if err != nil {
		return nil, err
	}
	giveBack := sync.OnceFunc(func() { l.slots.Release(1) })
	timer := time.AfterFunc(l.exempt, giveBack)
	return func() {
		timer.Stop()
		giveBack()
	}, nil
}
