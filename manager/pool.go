// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"sync"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// poolSpec is what a container wants of a shim that was not started for it.
type poolSpec struct {
	key       string // digest of all that the two must have in common
	namespace string
	binary    shimclient.Binary
	options   *anypb.Any
	limits    PoolConfig
}

// warmShim is a shim process that was started for no container in particular. It serves one task after the other, or several at once where
// config shares it.
type warmShim struct {
	dir   *bundle.Warm
	p     *Process
	reply *bootapi.BootstrapResult
	spec  poolSpec
	token string
	// answered is when it ran and had no task yet, in clock ticks since boot; 0 when that is not known.
	answered uint64

	// Guarded by pool.mu.
	// served is when the first task took it, left when one was last about to leave, in clock ticks since boot; 0: none has.
	served, left uint64
	tasks        int    // that have it now; not kept any more once it is retired
	leaving      int    // that are deleted and about to leave it
	worn         bool   // a task has left it
	reused       int    // tasks that it took after that
	retired      bool   // given to nobody any more
	home         bool   // its directory waits in its own place, for the next task whose bundle it may be
	placed       bool   // has one of the places of pool.idle
	idle         bool   // on the shelf, without a task; implies placed
	mine         bool   // the pool ends it by itself
	size         uint64 // bytes that it holds, as measured last
	counted      uint64 // of them in pool.held, while it is placed
	since        time.Time
	expiry       *time.Timer

	// clearing orders the removal of what it leaves and the return of its directory, and guards cleared.
	clearing sync.Mutex
	cleared  bool
}

func (w *warmShim) hasRoomLocked() bool {
	return !w.retired && w.tasks < max(1, w.spec.limits.Share) && !w.wornOutLocked()
}

// wornOutLocked: it may not take another task after one was deleted.
func (w *warmShim) wornOutLocked() bool {
	return w.worn && w.reused >= w.spec.limits.Reuse
}

// pool keeps the warm shims that can take a task. Which processes there are, and who is behind each, is the manager's and the
// processes' own; the pool only knows whom it may give away.
type pool struct {
	m *ShimManager
	// filling is the context of the starts of spares: no time of Close is left to them.
	filling context.Context
	stop    context.CancelFunc
	// readMemory reads the machine's memory; another in tests.
	readMemory func() machineMemory

	// mu guards all below and what warmShim says. It is held for no longer than it takes to look and to change; taken after no other lock.
	mu      sync.Mutex
	shelves map[string]*shelf // by key
	idle    int               // places of those on all shelves, about to come back, and being started: what the ceiling is about
	held    uint64            // bytes that those hold
	size    uint64            // what the shim that was measured last holds: what the next one is taken to
	closed  bool
	refused map[shimclient.FileID]time.Time // binaries that could not be started so, and when
	// allowed is what memory allows, as it was at memoryAt; watching: somebody looks at it from time to time.
	allowed  allowance
	memoryAt time.Time
	watching bool
	// around is the digest of the daemon's surroundings as they were at aroundAt.
	around   string
	aroundAt time.Time
}

// shelf holds the shims of one key.
type shelf struct {
	open    []*warmShim // with room for a task; the one that was used last is at the end
	want    int         // how many idle ones are kept ahead: grows with each create that found none, shrinks with each that nobody wanted
	filling bool
}

func newPool(m *ShimManager) *pool {
	o := &pool{
		m: m, shelves: make(map[string]*shelf), refused: make(map[shimclient.FileID]time.Time),
		readMemory: readMachineMemory, size: shimMemory,
	}
	o.filling, o.stop = context.WithCancel(m.ctx)
	return o
}

func (o *pool) shelfLocked(key string) *shelf {
	s := o.shelves[key]
	if s == nil {
		s = &shelf{}
		o.shelves[key] = s
	}
	return s
}

// take gives away a shim for one task: a shared one that others have, else the idle one that was used last, so that those nobody needs grow
// old; nil when there is none. idleFor is how long it had nothing to do.
func (o *pool) take(key string) (w *warmShim, idleFor time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.shelves[key]
	if s == nil || len(s.open) == 0 || o.closed {
		return nil, 0
	}
	n := slices.IndexFunc(s.open, func(w *warmShim) bool { return w.tasks > 0 })
	if n < 0 {
		n = len(s.open) - 1
		idleFor = time.Since(s.open[n].since)
	}
	w = s.open[n]
	o.notIdleLocked(w)
	w.tasks++
	if w.worn {
		w.reused++
	}
	if !w.hasRoomLocked() {
		s.open = slices.Delete(s.open, n, n+1)
	}
	return w, idleFor
}

// tookNow notes that a task takes the shim, and returns the moment: what began before it is not the task's. What the one before has left
// behind may have begun within the same tick.
func (o *pool) tookNow(w *warmShim) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := shimclient.Now()
	if w.served == 0 {
		w.served = now
	}
	if w.left != 0 {
		now = max(now, w.left+1)
	}
	return now
}

// put takes in a shim that was just started, or found: for a task, or idle. One that is not wanted any more is ended before put returns.
func (o *pool) put(w *warmShim, tasks int) {
	o.lookAtMemory()
	o.measure(w)
	o.mu.Lock()
	w.tasks = tasks
	if o.closed || w.retired || tasks == 0 && !o.placeLocked(w) {
		o.retireLocked(w, o.noRoomLocked(w))
	}
	o.shelveLocked(w)
	unwanted := w.retired && tasks == 0
	o.mu.Unlock()
	if unwanted {
		o.end(w)
	}
}

// keep asks whether the shim may go on without the task that is about to leave it. No is final: it is given to nobody any more, and ends
// with its last instance.
func (o *pool) keep(w *warmShim) bool {
	o.lookAtMemory()
	o.measure(w)
	o.mu.Lock()
	defer o.mu.Unlock()
	w.tasks--
	w.worn = true
	w.left = shimclient.Now()
	if o.closed || w.retired || w.wornOutLocked() || w.tasks == 0 && !o.placeLocked(w) {
		o.retireLocked(w, o.noRoomLocked(w))
		return false
	}
	w.leaving++
	return true
}

// back takes the instance, of which nothing is left, out of a shim that was kept, and shelves that. Instances that the
// pool knows nothing of may still be in it, as the containers of a pod whose sandbox went first; their last one ends it.
func (o *pool) back(w *warmShim, i *Instance) {
	o.mu.Lock()
	w.leaving--
	left := w.p.remove(i)
	if w.tasks == 0 && left > w.leaving {
		o.retireLocked(w, "distrusted")
	}
	o.shelveLocked(w)
	// Not by the count of its tasks, which those that left one in disorder are still among. A create that has taken it and not yet joined it
	// finds it closing and takes another.
	done := w.retired && left == 0
	o.mu.Unlock()
	// It may have died between the two; then nobody else ends it.
	if done || w.p.isOver() {
		o.finish(w)
	}
}

func (o *pool) shelveLocked(w *warmShim) {
	if !w.hasRoomLocked() {
		return
	}
	s := o.shelfLocked(w.spec.key)
	if n := slices.Index(s.open, w); n >= 0 {
		s.open = slices.Delete(s.open, n, n+1)
	}
	s.open = append(s.open, w)
	if w.tasks == 0 && w.leaving == 0 && w.placed && !w.idle {
		w.idle, w.since = true, time.Now()
		o.watchLocked()
		w.expiry = time.AfterFunc(o.m.config.WarmIdle, func() { o.expire(w) })
	}
}

// placeLocked gives the shim one of the places below the ceiling; false when there is none.
func (o *pool) placeLocked(w *warmShim) bool {
	if !w.placed && o.fitsLocked(w.size) {
		w.placed, w.counted = true, w.size
		o.idle++
		o.held += w.counted
	}
	return w.placed
}

func (o *pool) notIdleLocked(w *warmShim) {
	if w.idle {
		w.idle = false
		w.expiry.Stop()
	}
	if w.placed {
		w.placed = false
		o.idle--
		o.held -= w.counted
	}
}

// retireLocked lets the shim be given to nobody any more. why is for the metrics, see metrics.WarmEnded.
func (o *pool) retireLocked(w *warmShim, why string) {
	if !w.retired {
		metrics.WarmEnded(why)
	}
	w.retired = true
	o.notIdleLocked(w)
	s := o.shelves[w.spec.key]
	if s == nil {
		return
	}
	if n := slices.Index(s.open, w); n >= 0 {
		s.open = slices.Delete(s.open, n, n+1)
	}
	o.tidyLocked(w.spec.key, s)
}

// noRoomLocked is why a shim may not go on.
func (o *pool) noRoomLocked(w *warmShim) string {
	switch {
	case o.closed:
		return "stop"
	case w.wornOutLocked():
		return "worn"
	case o.idle < o.m.config.WarmLimit && !o.fitsLocked(w.size):
		return "memory"
	}
	return "ceiling"
}

// tidyLocked forgets a key that nobody needs.
func (o *pool) tidyLocked(key string, s *shelf) {
	if len(s.open) == 0 && s.want == 0 && !s.filling {
		delete(o.shelves, key)
	}
}

// expire ends a shim that nobody wanted for the whole idle time, and lowers what is kept ahead.
func (o *pool) expire(w *warmShim) {
	o.mu.Lock()
	due := w.idle && time.Since(w.since) >= o.m.config.WarmIdle
	if due {
		if s := o.shelves[w.spec.key]; s != nil {
			s.want = max(0, s.want-1)
		}
		o.retireLocked(w, "idle")
	}
	o.mu.Unlock()
	if due {
		o.finish(w)
	}
}

// distrust retires a process that did not do as it should: left a call unanswered, lost its connection, failed a create or a delete. What
// it serves stays with it. Nothing happens to a process that is not the pool's.
func (o *pool) distrust(p *Process) {
	if p == nil {
		return
	}
	w := p.warmth()
	if w == nil {
		return
	}
	o.mu.Lock()
	idle := w.idle
	o.retireLocked(w, "distrusted")
	o.mu.Unlock()
	if idle {
		o.finish(w)
	}
}

// warmth of the process; nil for one that was started for one instance.
func (p *Process) warmth() *warmShim {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.warm
}
