// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package await waits for what others change. It is the one loop of its kind.
package await

import (
	"context"
	"time"
)

// Wake are the channels whose close, or next value, is a reason to look again; nil ones are none.
type Wake [3]<-chan struct{}

// Until calls look until that says that it is done, again whenever one of the channels that it returned wakes it.
// look takes the channels before it looks, so that no change is missed between the two. It is called once at least,
// and by this goroutine alone. The error is that of a context that ends first.
func Until(ctx context.Context, look func() (Wake, bool)) error {
	for {
		wake, done := look()
		if done {
			return nil
		}
		select {
		case <-wake[0]:
		case <-wake[1]:
		case <-wake[2]:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Sleep waits for d; false when the context ends first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
