// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// Wish is what a create asks for, as far as that decides whether a shim which was not started for it may serve it.
type Wish struct {
	ID string
	// Groups are the ids of the containers whose shim the spec asks to be served by.
	Groups []string
	// RuncGroup tells that the spec groups containers by the annotation of runc's shim.
	RuncGroup bool
	// Options of the runtime.
	Options *anypb.Any
}

// Allowed tells whether a warm shim may serve it: not where the shim is to be in a cgroup of its own, nor where the
// spec groups containers, except for the first container of a pod.
func (w Wish) Allowed() bool {
	if w.RuncGroup || hasShimCgroup(w.Options) {
		return false
	}
	return !IsGrouped(w.ID, w.Groups)
}

// IsGrouped tells whether a container's groups put it into another's shim, or beside it: that of a pod's first
// container is its own id.
func IsGrouped(id string, groups []string) bool {
	return slices.ContainsFunc(groups, func(g string) bool { return g != id })
}

// hasShimCgroup: the shim itself is to be put into a cgroup, which cannot be done later. What cannot be read says so,
// to be safe.
func hasShimCgroup(opts *anypb.Any) bool {
	if opts == nil || !typeurl.Is(opts, (*runcoptions.Options)(nil)) {
		return false
	}
	var o runcoptions.Options
	return typeurl.UnmarshalTo(opts, &o) != nil || o.ShimCgroup != ""
}

// surroundingsTime is for how long the digest of the surroundings is cached: a create that races with a change of the
// daemon's limits may see either.
const surroundingsTime = time.Second

// Keys makes the keys of warm shims. The zero value is ready for use. Safe for concurrent use.
type Keys struct {
	// mu guards the digest of the daemon's surroundings as they were at aroundAt.
	mu sync.Mutex
	// +checklocks:mu
	around string
	// +checklocks:mu
	aroundAt time.Time
}

// Of is the digest of all that a shim got at its start and cannot be given later: a create that would start a shim
// which differs in nothing of it can take the one that is there. parts are what the owner gives to the shim; the
// daemon's environment and what a child process inherits besides it are added. Records on disk carry keys, so the
// digest of the same things is to stay what it is.
func (k *Keys) Of(parts ...string) string {
	h := sha256.New()
	add := func(parts ...string) {
		for _, p := range parts {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
	}
	add(parts...)
	add(os.Environ()...)
	add(k.surroundings())
	return hex.EncodeToString(h.Sum(nil))
}

// surroundings is the digest of what a child process inherits from the daemon, see readSurroundings.
func (k *Keys) surroundings() string {
	k.mu.Lock()
	digest, read := k.around, k.aroundAt
	k.mu.Unlock()
	if digest != "" && time.Since(read) < surroundingsTime {
		return digest
	}
	read, digest = time.Now(), readSurroundings()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.around, k.aroundAt = digest, read
	return digest
}

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
