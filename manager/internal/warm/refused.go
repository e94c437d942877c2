// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"sync"
	"time"
)

// refusalTime is for how long a binary is not started for no container in particular after that has failed.
const refusalTime = time.Minute

// Refused remembers the binaries that could not be started as warm shims. B identifies the file of a binary. The zero
// value is empty. Safe for concurrent use.
type Refused[B comparable] struct {
	mu sync.Mutex
	// +checklocks:mu
	at map[B]time.Time
}

// Add notes that a binary could not be started so; for a minute it is not tried again.
func (r *Refused[B]) Add(binary B) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == nil {
		r.at = make(map[B]time.Time)
	}
	r.at[binary] = time.Now()
}

// Has tells whether a binary is not to be tried now.
func (r *Refused[B]) Has(binary B) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.at[binary]
	if ok && time.Since(at) > refusalTime {
		delete(r.at, binary)
		return false
	}
	return ok
}
