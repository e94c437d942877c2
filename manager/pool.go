// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"sync"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// refusalTime is for how long a binary is not started for the pool after that has failed.
const refusalTime = time.Minute

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

	// Guarded by pool.mu.
	tasks   int  // that have it now
	uses    int  // tasks that have it or had it
	retired bool // given to nobody any more
	idle    bool // on the shelf, without a task
	mine    bool // the pool ends it by itself
	since   time.Time
	expiry  *time.Timer

	// clearing orders the removals of what it leaves, and guards cleared.
	clearing sync.Mutex
	cleared  bool
}

func (w *warmShim) hasRoomLocked() bool {
	return !w.retired && w.tasks < max(1, w.spec.limits.Share) && w.uses <= w.spec.limits.Reuse
}

// pool keeps the warm shims that can take a task. Which processes there are, and who is behind each, is the manager's and the
// processes' own; the pool only knows whom it may give away.
type pool struct {
	m *ShimManager
	// ctx is that of spares being started; stop ends it.
	ctx  context.Context
	stop context.CancelFunc

	// mu guards all below and what warmShim says. It is held for no longer than it takes to look and to change; taken after no other lock.
	mu      sync.Mutex
	shelves map[string]*shelf // by key
	idle    int               // on all shelves, and spares that are being started: what the ceiling is about
	closed  bool
	refused map[shimclient.FileID]time.Time // binaries that could not be started so, and when
}

// shelf holds the shims of one key.
type shelf struct {
	open    []*warmShim // with room for a task; the one that was used last is at the end
	want    int         // how many idle ones are kept ahead: grows with each create that found none, shrinks with each that nobody wanted
	filling bool
}

func newPool(m *ShimManager) *pool {
	o := &pool{m: m, shelves: make(map[string]*shelf), refused: make(map[shimclient.FileID]time.Time)}
	o.ctx, o.stop = context.WithCancel(m.ctx)
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
	w.uses++
	if !w.hasRoomLocked() {
		s.open = slices.Delete(s.open, n, n+1)
	}
	return w, idleFor
}

// put takes in a shim that was just started: for a task, or idle.
func (o *pool) put(w *warmShim, tasks int) {
	o.mu.Lock()
	w.tasks, w.uses = tasks, tasks
	retired := o.closed || w.retired
	if retired {
		w.retired = true
	} else {
		o.shelveLocked(w)
	}
	o.mu.Unlock()
	if retired && tasks == 0 {
		o.finish(w)
	}
}

// keep asks whether the shim may go on without the task that is about to leave it. No is final: it is given to nobody any more, and ends
// with its last instance.
func (o *pool) keep(w *warmShim) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.tasks--
	if o.closed || w.retired || w.uses > w.spec.limits.Reuse || w.tasks == 0 && o.idle >= o.m.config.WarmLimit {
		o.retireLocked(w)
		return false
	}
	return true
}

// back shelves a shim that was kept. peopled: instances that the pool knows nothing of are still in it, as the containers of a pod whose
// sandbox went first; their last one ends it.
func (o *pool) back(w *warmShim, peopled bool) {
	o.mu.Lock()
	if w.tasks == 0 && peopled {
		o.retireLocked(w)
	} else if !w.retired {
		o.shelveLocked(w)
	}
	done := w.retired && w.tasks == 0 && !peopled
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
	if w.tasks == 0 {
		w.idle, w.since = true, time.Now()
		o.idle++
		w.expiry = time.AfterFunc(o.m.config.WarmIdle, func() { o.expire(w) })
	}
}

func (o *pool) notIdleLocked(w *warmShim) {
	if w.idle {
		w.idle = false
		w.expiry.Stop()
		o.idle--
	}
}

func (o *pool) retireLocked(w *warmShim) {
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
		o.retireLocked(w)
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
	o.retireLocked(w)
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

// missed notes that a create found no shim: one more is kept ahead from now on.
func (o *pool) missed(s poolSpec) {
	o.mu.Lock()
	defer o.mu.Unlock()
	shelf := o.shelfLocked(s.key)
	shelf.want = min(s.limits.Warm, shelf.want+1)
}

// refill starts spares in the background, one after the other, until as many are idle as are wanted.
func (o *pool) refill(spec poolSpec) {
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
	return !o.closed && idle < s.want && o.idle < o.m.config.WarmLimit
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
		o.idle++ // the spare's place
		o.mu.Unlock()
		w, err := o.start(o.ctx, spec)
		o.mu.Lock()
		o.idle--
		if err != nil {
			s.filling, s.want = false, 0
			o.tidyLocked(spec.key, s)
		}
		o.mu.Unlock()
		if err != nil {
			if o.ctx.Err() == nil {
				log.G(o.m.ctx).WithError(err).Warn("cannot start a spare shim; creates start their own")
			}
			return
		}
		o.put(w, 0)
	}
}
