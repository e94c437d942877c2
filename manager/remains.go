// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"sync"
	"time"

	"github.com/shimyard/shimyard/shimclient"
)

// remains is what there is to clean up of an instance that ends, and how far the cleaning has come. Safe for
// concurrent use: its lock may be taken while the instance's is held, and nothing is done under it. That is right
// because no field of it decides about a state: the cleaning of an instance begins after the state has changed, and
// one goroutine at a time does it.
type remains struct {
	mu      sync.Mutex
	mounted bool // mounts are to be deactivated
	// of launches whose processes are to be ended before anything is removed
	tokens        []string
	spare         func(shimclient.ProcessID) bool // which of these processes are not; nil for none
	shimDeleted   bool                            // `shim delete` has succeeded, and is not to run again
	failedDeletes int                             // attempts of it that failed
	left          error                           // what could not be removed yet
	leftAt        time.Time
}

// setMounted notes that mounts are to be deactivated.
func (r *remains) setMounted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mounted = true
}

func (r *remains) isMounted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mounted
}

// setLaunches notes by their tokens the launches whose processes are to be ended, and which of these are not; nil for
// none.
func (r *remains) setLaunches(tokens []string, spare func(shimclient.ProcessID) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens, r.spare = tokens, spare
}

// launches is what setLaunches was given.
func (r *remains) launches() (tokens []string, spare func(shimclient.ProcessID) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tokens, r.spare
}

// onShimDelete notes how an attempt of `shim delete` has ended.
func (r *remains) onShimDelete(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failedDeletes++
		return
	}
	r.shimDeleted = true
}

// deleteAgain makes `shim delete` due again: it has succeeded and left something.
func (r *remains) deleteAgain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shimDeleted = false
}

func (r *remains) isShimDeleted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shimDeleted
}

// deleteTries counts the attempts of `shim delete` that failed.
func (r *remains) deleteTries() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failedDeletes
}

// setLeft records what could not be removed yet, nil for nothing; true when that is news.
func (r *remains) setLeft(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := r.left == nil || err == nil || r.left.Error() != err.Error()
	r.left, r.leftAt = err, time.Now().UTC()
	return news
}

// whatIsLeft is what setLeft recorded last, and when; nil for nothing.
func (r *remains) whatIsLeft() (at time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leftAt, r.left
}
