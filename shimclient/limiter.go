// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/errors"
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

// acquire waits for a slot; ctx ends the wait with its error. The turn must be
// ended once the command is over.
func (l *limiter) acquire(ctx context.Context) (*Turn, error) {
	l.waiting.Add(1)
	err := l.slots.Acquire(ctx, 1)
	l.waiting.Add(-1)
	if err != nil {
		return nil, err
	}
	t := &Turn{giveBack: sync.OnceFunc(func() { l.slots.Release(1) })}
	t.exempt = time.AfterFunc(l.exempt, t.giveBack)
	return t, nil
}

// Turn is one of the slots in which so much is done at a time as the machine can
// do at once. nil is a turn that nothing waits for. Safe for concurrent use.
type Turn struct {
	exempt   *time.Timer
	giveBack func()
}

// Within makes the turn end by itself after d, if what it is for takes that long.
func (t *Turn) Within(d time.Duration) {
	if t != nil && t.exempt.Stop() {
		t.exempt.Reset(d)
	}
}

// End lets the next have its turn. All but the first call do nothing.
func (t *Turn) End() {
	if t != nil {
		t.exempt.Stop()
		t.giveBack()
	}
}

// turnKey is under what a context carries a turn.
type turnKey struct{}

// TakeTurn waits for a turn, in the order in which turns are asked for, for a
// caller who goes on with the shim that it starts, and is to be done before the
// next begins. A Start with the context that is returned waits for no other. The
// turn is the caller's to end, and ends by itself after 5 s. A context that
// carries one already is returned with a turn that nothing waits for.
//
// Errors: the class of ctx's end.
func (l *Launcher) TakeTurn(ctx context.Context) (context.Context, *Turn, error) {
	if ctx.Value(turnKey{}) != nil {
		return ctx, nil, nil
	}
	begin := time.Now()
	turn, err := l.limiter.acquire(ctx)
	if err != nil {
		return nil, nil, errors.Wrap(err, "waiting for other starts to end")
	}
	l.config.OnQueued(time.Since(begin))
	return context.WithValue(ctx, turnKey{}, turn), turn, nil
}

// Waiting is how many wait for their turn.
func (l *Launcher) Waiting() int { return int(l.limiter.waiting.Load()) }
