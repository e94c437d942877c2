// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"time"
)

// DefaultWriteTimeout is how long a peer may leave our bytes unread before the
// connection is given up. It is long, because giving up costs the answers of
// the calls in flight; no caller waits for it past its own context.
const DefaultWriteTimeout = 10 * time.Second

// answerSlack is how long before a deadline the shim's own DEADLINE_EXCEEDED
// is taken for the passing of that deadline: the shim counts the same time,
// on its own clock and from when the request reached it.
const answerSlack = 50 * time.Millisecond

// Deadlines bounds calls by the name of the method ("State"). A method that is
// absent, zero or negative is bounded by its caller alone. A map that was handed
// to Dial or NewConn is copied there.
type Deadlines map[string]time.Duration

// DefaultDeadlines returns a fresh copy of the defaults. Delete's is long since
// a shim holds its lock through the drain of a task's IO and the unmounts.
func DefaultDeadlines() Deadlines {
	return Deadlines{
		"State":     2 * time.Second,
		"Pids":      2 * time.Second,
		"Stats":     2 * time.Second,
		"Connect":   2 * time.Second,
		"ResizePty": 10 * time.Second,
		"CloseIO":   10 * time.Second,
		"Kill":      30 * time.Second,
		"Delete":    2 * time.Minute,
	}
}

// bound is a caller's context with the method's own deadline on it.
type bound struct {
	context.Context
	own bool // the method's deadline is the earlier one
}

// bound applies the deadline of a method to the caller's context.
func (d Deadlines) bound(ctx context.Context, method string) (bound, context.CancelFunc) {
	limit := d[method]
	if limit <= 0 {
		return bound{Context: ctx}, func() {}
	}
	at := time.Now().Add(limit)
	callers, ok := ctx.Deadline()
	own := !ok || at.Before(callers)
	ctx, cancel := context.WithDeadlineCause(ctx, at, ErrNoAnswer)
	return bound{Context: ctx, own: own}, cancel
}

// passed returns what ended the context, or is about to: ErrNoAnswer if it is
// the method's own deadline, otherwise the context's error, or nil.
func (b bound) passed() error {
	if err := b.Err(); err != nil {
		if b.own && context.Cause(b.Context) == ErrNoAnswer {
			return ErrNoAnswer
		}
		return err
	}
	if at, ok := b.Deadline(); !ok || time.Until(at) > answerSlack {
		return nil
	}
	if b.own {
		return ErrNoAnswer
	}
	return context.DeadlineExceeded
}
