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
	return UntilDue(ctx, func() (Wake, time.Duration, bool) {
		wake, done := look()
		return wake, 0, done
	})
}

// UntilDue is Until for a look that has also to be repeated when some time has passed, which it returns; 0 is never.
func UntilDue(ctx context.Context, look func() (Wake, time.Duration, bool)) error {
	for {
		wake, again, done := look()
		if done {
			return nil
		}
		var due <-chan time.Time
		stop := func() bool { return true }
		if again > 0 {
			t := time.NewTimer(again)
			due, stop = t.C, t.Stop
		}
		select {
		case <-wake[0]:
		case <-wake[1]:
		case <-wake[2]:
		case <-due:
		case <-ctx.Done():
			stop()
			return ctx.Err()
		}
		stop()
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

// IsClosed tells whether a channel that nothing is sent on is closed.
func IsClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// After is closed when d has passed.
func After(d time.Duration) <-chan struct{} {
	ch := make(chan struct{})
	time.AfterFunc(d, func() { close(ch) })
	return ch
}
