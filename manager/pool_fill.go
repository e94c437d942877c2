// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"time"

	"github.com/containerd/log"

	"github.com/shimyard/shimyard/shimclient"
)

// refusalTime is for how long a binary is not started for the pool after that has failed.
const refusalTime = time.Minute

// missed notes that a create found no shim: one more is kept ahead from now on.
func (o *pool) missed(s poolSpec) {
	o.mu.Lock()
	defer o.mu.Unlock()
	shelf := o.shelfLocked(s.key)
	shelf.want = min(s.limits.Warm, shelf.want+1)
}

// refill starts spares in the background, one after the other, until as many are idle as are wanted.
func (o *pool) refill(spec poolSpec) {
	o.lookAtMemory()
	o.mu.Lock()
	s := o.shelves[spec.key]
	start := s != nil && !s.filling && o.wantsLocked(s)
	if start {
		s.filling = true
	}
	o.mu.Unlock()
	if start {
		o.m.spawn(func() { o.fill(spec, s) })
	}
}

func (o *pool) wantsLocked(s *shelf) bool {
	idle := 0
	for _, w := range s.open {
		if w.idle {
			idle++
		}
	}
	return !o.closed && idle < s.want && o.fitsLocked(o.size)
}

func (o *pool) fill(spec poolSpec, s *shelf) {
	for {
		o.mu.Lock()
		if !o.wantsLocked(s) {
			s.filling = false
			o.tidyLocked(spec.key, s)
			o.mu.Unlock()
			return
		}
		size := o.size
		o.idle++ // the spare's place
		o.held += size
		o.mu.Unlock()
		w, err := o.start(o.filling, spec)
		o.mu.Lock()
		if err == nil {
			w.placed, w.counted = true, size
		} else {
			o.idle--
			o.held -= size
			s.filling, s.want = false, 0
			o.tidyLocked(spec.key, s)
		}
		o.mu.Unlock()
		if err != nil {
			if o.filling.Err() == nil {
				log.G(o.filling).WithError(err).Warn("cannot start a spare shim; creates start their own")
			}
			return
		}
		o.put(w, 0)
	}
}

// refuse notes that a binary could not be started for no container; for some time nobody tries.
func (o *pool) refuse(b shimclient.Binary) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refused[b.File] = time.Now()
}

func (o *pool) refuses(b shimclient.Binary) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	at, ok := o.refused[b.File]
	if ok && time.Since(at) > refusalTime {
		delete(o.refused, b.File)
		return false
	}
	return ok
}
