// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package await

import (
	"context"
	"sync"

	"github.com/pkg/errors"
)

// KeyedLock is one lock for each key. The zero value is ready. Unlike a mutex it is held across
// a launch or an RPC, and a caller that waits for it can leave.
type KeyedLock struct {
	mu sync.Mutex
	// +checklocks:mu
	held map[string]chan struct{} // closed when the key is free again
}

// Lock waits for the key; unlock must be called once, if there is no error.
func (l *KeyedLock) Lock(ctx context.Context, key string) (unlock func(), err error) {
	mine := make(chan struct{})
	err = Until(ctx, func() (Wake, bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if free, taken := l.held[key]; taken {
			return Wake{free}, false
		}
		if l.held == nil {
			l.held = make(map[string]chan struct{})
		}
		l.held[key] = mine
		return Wake{}, true
	})
	if err != nil {
		return nil, errors.Wrapf(err, "waiting for another call for %s to end", key)
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, key)
		close(mine)
	}, nil
}
