// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"maps"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// DefaultWriteTimeout is how long a peer may leave our bytes unread before the
// connection is given up. It is long, because giving up costs the answers of
// the calls in flight; no caller waits for it past its own context.
const DefaultWriteTimeout = 10 * time.Second

// answerSlack is how long before a deadline the shim's own DEADLINE_EXCEEDED
// is taken for the passing of that deadline: the shim counts the same time,
// on its own clock and from when the request reached it.
const answerSlack = 50 * time.Millisecond

// Deadlines bounds calls by the name of the method, of the Task API ("State") or
// of the Sandbox API ("SandboxStatus"). A method that is absent, zero or negative
// is bounded by its caller alone. A map that was handed to Dial or NewConn is
// copied there.
type Deadlines map[string]time.Duration

// OwnCalls are the methods that are also called without any caller who has a
// deadline: when a daemon starts, to find out whether a shim answers, and to end a
// delete whose caller has left. Each must have a deadline.
var OwnCalls = []string{"Connect", "Delete", "SandboxStatus", "ShutdownSandbox", "State"}

// Check returns an InvalidArgument error that names a method of OwnCalls without
// a deadline.
func (d Deadlines) Check() error {
	for _, method := range OwnCalls {
		if d[method] <= 0 {
			return errors.Wrapf(errdefs.ErrInvalidArgument,
				"no deadline for %s, which is also called where no caller has one; set how long it may take", method)
		}
	}
	return nil
}

// With returns a copy of d with others laid over it.
func (d Deadlines) With(others Deadlines) Deadlines {
	all := maps.Clone(d)
	maps.Copy(all, others)
	return all
}

// DefaultDeadlines returns a fresh copy of the defaults. Delete's is long since
// a shim holds its lock through the drain of a task's IO and the unmounts, and
// ShutdownSandbox's since a virtual machine may have to end. StopSandbox's counts
// from when the grace that the caller gives the sandbox has passed.
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

		"SandboxStatus":   2 * time.Second,
		"SandboxMetrics":  2 * time.Second,
		"Platform":        2 * time.Second,
		"StopSandbox":     30 * time.Second,
		"ShutdownSandbox": 2 * time.Minute,
	}
}

// bound is a caller's context with the method's own deadline on it.
type bound struct {
	context.Context
	own bool // the method's deadline is the earlier one
}

// bound applies the deadline of a method, and what the call itself asks the shim
// to wait, to the caller's context.
func (d Deadlines) bound(ctx context.Context, method string, grace time.Duration) (bound, context.CancelFunc) {
	limit := d[method]
	if limit <= 0 {
		return bound{Context: ctx}, func() {}
	}
	at := time.Now().Add(limit + grace)
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
