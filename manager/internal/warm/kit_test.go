// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func init() {
	misstep = func(from, to State) { panic(fmt.Sprintf("a warm shim that is %s must not become %s", from, to)) }
}

const (
	idleTime = time.Minute
	plenty   = 1 << 40
	mib      = 1 << 20
)

var limits = Limits{Warm: 2, Reuse: 2, Share: 1}

// owner stands for the manager: its shims are names, and it notes what the account asks of it.
type owner struct {
	*testing.T
	*Account[string]

	mu sync.Mutex
	// +checklocks:mu
	ended []string
	// +checklocks:mu
	why     []string
	started int
	failing bool // starts of spares fail
	// +checklocks:mu
	machine Machine
	holds   map[string]uint64 // bytes; those of others cannot be read
}

type entry = *Entry[string]

// inBubble runs a test with an account whose time is the bubble's.
func inBubble(t *testing.T, c Config[string], f func(o *owner)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, c)
		f(o)
		o.Close()
		synctest.Wait()
		require.Empty(t, o.Waiting())
	})
}

func newOwner(t *testing.T, c Config[string]) *owner {
	o := &owner{T: t, machine: Machine{Total: plenty, Available: plenty}, holds: make(map[string]uint64)}
	if c.Limit == 0 {
		c.Limit = 32
	}
	c.Idle = idleTime
	c.Machine = func() Machine {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.machine
	}
	c.Held = func(shim string) (uint64, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if n, ok := o.holds[shim]; ok {
			return n, nil
		}
		return 0, fmt.Errorf("cannot read what %s holds", shim)
	}
	c.End = func(shim string) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.ended = append(o.ended, shim)
	}
	c.Spawn = func(f func()) { go f() }
	c.Retired = func(why string) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.why = append(o.why, why)
	}
	o.Account = New(context.Background(), c)
	return o
}

// asked takes what the account has asked for since the last time: which shims were to be ended, and why any were
// retired.
func (o *owner) asked() (ended, why []string) {
	synctest.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	ended, why = o.ended, o.why
	o.ended, o.why = nil, nil
	slices.Sort(ended)
	return ended, why
}

// idle puts idle shims in, a second apart.
func (o *owner) idle(key string, names ...string) (entries []entry) {
	for _, name := range names {
		e := o.Enter(name, key, limits)
		o.Put(e, 0)
		entries = append(entries, e)
		time.Sleep(time.Second)
	}
	return entries
}

// spare starts a spare, named by its number.
func (o *owner) spare(key string) func(context.Context) (entry, error) {
	return func(context.Context) (entry, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.started++
		if o.failing {
			return nil, fmt.Errorf("cannot start spare %d", o.started)
		}
		return o.Enter(fmt.Sprintf("spare%d", o.started), key, limits), nil
	}
}

// miss is what a create does that finds no shim: it starts one for itself, and lets spares be started.
func (o *owner) miss(key string) entry {
	o.Helper()
	e, _ := o.Take(key)
	require.Nil(o, e)
	o.Missed(key, limits.Warm)
	e = o.Enter("own", key, limits)
	o.Put(e, 1)
	o.Refill(key, o.spare(key))
	synctest.Wait()
	return e
}

// waits requires which shims are idle, in any order.
func (o *owner) waits(names ...string) {
	o.Helper()
	synctest.Wait()
	require.ElementsMatch(o, names, o.Waiting())
	require.Equal(o, len(names), o.taken(), "each idle shim has a place, and nothing else has")
}

// taken is how many places are.
func (o *owner) taken() int {
	o.Account.mu.Lock()
	defer o.Account.mu.Unlock()
	return o.places
}

// holding is how many bytes what is in the places holds.
func (o *owner) holding() uint64 {
	o.Account.mu.Lock()
	defer o.Account.mu.Unlock()
	return o.held
}

// stateOf a shim at this moment.
func (o *owner) stateOf(e entry) State {
	o.Account.mu.Lock()
	defer o.Account.mu.Unlock()
	return e.state
}

// isWatching tells whether the memory is looked at.
func (o *owner) isWatching() bool {
	o.Account.mu.Lock()
	defer o.Account.mu.Unlock()
	return o.watching
}

// hasShelf tells whether the account knows a key.
func (o *owner) hasShelf(key string) bool {
	o.Account.mu.Lock()
	defer o.Account.mu.Unlock()
	return o.shelves[key] != nil
}
