// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"sync"
	"time"

	"github.com/shimyard/shimyard/shimclient"
)

// Remains is what there is to clean up of an instance that ends, and how far the cleaning has come. Safe for
// concurrent use: its lock may be taken while the instance's is held, and nothing is done under it. That is right
// because no field of it decides about a state: the cleaning of an instance begins after the state has changed, and
// one goroutine at a time does it.
type Remains struct {
	mu sync.Mutex
	// +checklocks:mu
	mounted bool // mounts are to be deactivated
	// +checklocks:mu
	tokens []string // of launches whose processes are to be ended before anything is removed
	// +checklocks:mu
	spare func(shimclient.ProcessID) bool // which of these processes are not; nil for none
	// +checklocks:mu
	shimDeleted bool // `shim delete` has succeeded, and is not to run again
	// +checklocks:mu
	failedDeletes int // attempts of it that failed
	// +checklocks:mu
	left error // what could not be removed yet
	// +checklocks:mu
	leftAt time.Time
	// +checklocks:mu
	failures int // how often that was so
	// +checklocks:mu
	failedAt time.Time // for the first time
	// +checklocks:mu
	said map[string]bool // what was logged
}

// SetMounted notes that mounts are to be deactivated.
func (r *Remains) SetMounted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mounted = true
}

func (r *Remains) IsMounted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mounted
}

// SetLaunches notes by their tokens the launches whose processes are to be ended, and which of these are not; nil for
// none.
func (r *Remains) SetLaunches(tokens []string, spare func(shimclient.ProcessID) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens, r.spare = tokens, spare
}

// Launches is what SetLaunches was given.
func (r *Remains) Launches() (tokens []string, spare func(shimclient.ProcessID) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tokens, r.spare
}

// OnShimDelete notes how an attempt of `shim delete` has ended.
func (r *Remains) OnShimDelete(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failedDeletes++
		return
	}
	r.shimDeleted = true
}

// DeleteAgain makes `shim delete` due again: it has succeeded and left something.
func (r *Remains) DeleteAgain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shimDeleted = false
}

func (r *Remains) IsShimDeleted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shimDeleted
}

// DeleteTries counts the attempts of `shim delete` that failed.
func (r *Remains) DeleteTries() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failedDeletes
}

// SetLeft records what could not be removed yet, nil for nothing; true when that is news.
func (r *Remains) SetLeft(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := r.left == nil || err == nil || r.left.Error() != err.Error()
	r.left, r.leftAt = err, time.Now().UTC()
	if err != nil {
		if r.failures == 0 {
			r.failedAt = time.Now()
		}
		r.failures++
	}
	return news
}

// First tells whether it is asked of this for the first time: what each attempt finds is logged by one.
func (r *Remains) First(what string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.said[what] {
		return false
	}
	if r.said == nil {
		r.said = make(map[string]bool)
	}
	r.said[what] = true
	return true
}

// Failed is how often something could not be removed, and since when. It stays when that is removed.
func (r *Remains) Failed() (since time.Time, failures int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failedAt, r.failures
}

// WhatIsLeft is what SetLeft recorded last, and when; nil for nothing.
func (r *Remains) WhatIsLeft() (at time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leftAt, r.left
}
