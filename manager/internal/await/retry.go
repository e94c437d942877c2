// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package await

import (
	"context"
	"math/rand/v2"
	"time"
)

// Pauses are those between the attempts of one thing: the first, and after it each twice as long as the one before, up
// to the last.
type Pauses struct{ First, Last time.Duration }

// Retry calls try until it succeeds, with growing pauses; false when the context ends before it has.
func Retry(ctx context.Context, p Pauses, try func() bool) bool {
	return try() || RetryLater(ctx, p, try)
}

// RetryLater is Retry for what has just failed: it begins with a pause.
func RetryLater(ctx context.Context, p Pauses, try func() bool) bool {
	for pause := p.First; Sleep(ctx, Spread(pause)); pause = min(2*pause, p.Last) {
		if try() {
			return true
		}
	}
	return false
}

// Spread is a pause of half to one and a half times d, so that what has failed together is tried again apart: hundreds
// of shims may die at once.
func Spread(d time.Duration) time.Duration { return d/2 + rand.N(d) }
