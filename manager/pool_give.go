// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient"
)

const (
	// trusted is how long an idle shim is given away unasked; one that was idle for longer has askTime to answer first.
	trusted = 5 * time.Second
	askTime = 250 * time.Millisecond
)

// launchWarm gives the instance a shim of the pool, or starts one that can be of use to others after it. A binary that
// does not let itself be started so is launched as any other.
func (m *ShimManager) launchWarm(
	ctx context.Context, i *Instance, facts specFacts, spec poolSpec,
) (*bootapi.BootstrapResult, error) {
	if err := m.clearPlace(ctx, i); err != nil {
		return nil, err
	}
	defer m.pool.account.Refill(spec.key, func(ctx context.Context) (*warm.Entry[*warmShim], error) {
		return m.pool.spare(ctx, spec)
	})
	for ctx.Err() == nil {
		e, idleFor := m.pool.account.Take(spec.key)
		if e == nil {
			break
		}
		w := e.Shim
		if !w.usable(ctx, idleFor >= m.pool.trusted) {
			m.pool.account.GiveUp(e)
			continue
		}
		err := m.occupy(ctx, i, w, facts)
		if err == nil {
			metrics.WarmRequest(spec.binary.Runtime, "hit")
			return w.reply, nil
		}
		if !errors.Is(err, shimproc.ErrDead) && !errors.Is(err, shimproc.ErrClosing) {
			return nil, err
		}
	}
	metrics.WarmRequest(spec.binary.Runtime, "miss")
	w, err := m.pool.start(ctx, spec)
	if err != nil {
		if ctx.Err() != nil || m.ctx.Err() != nil {
			return nil, err
		}
		log.G(ctx).WithError(err).
			Info("cannot start the shim as one that can serve again, starting it for this container alone")
		m.pool.refused.Add(spec.binary.File)
		return m.launchAlone(ctx, i, facts, spec.options)
	}
	m.pool.account.Missed(spec.key, spec.limits.Warm)
	m.pool.account.Put(w.entry, 1)
	i.mu.Lock()
	i.ledger.startedWarmLocked()
	i.mu.Unlock()
	if err := m.occupy(ctx, i, w, facts); err != nil {
		return nil, err
	}
	return w.reply, nil
}

// usable tells whether a shim can be given away: it is connected and, where that is asked, it answers and its socket,
// which tmp cleaners remove, is there for the next daemon. That is awaited without the caller's cancellation, which
// says nothing of the shim.
func (w *warmShim) usable(ctx context.Context, ask bool) bool {
	l, st, _ := w.p.Watch()
	if pid := w.p.Verified(); st != shimproc.Connected || pid != (shimclient.ProcessID{}) && !pid.Alive() {
		return false
	}
	if !ask {
		return true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
	defer cancel()
	return w.p.Endpoint.Probe(ctx) == shimclient.Reachable && w.p.Ask(ctx, l.Task) == nil
}

// occupy makes a shim of the pool the instance's. The bundle says who serves it from its first moment on, so that the
// daemon may die at any. When it fails and returns errShimDead or errClosing, nothing of it is left; after another
// failure what is left is undone with the create.
func (m *ShimManager) occupy(ctx context.Context, i *Instance, w *warmShim, facts specFacts) error {
	took := w.tookNow()
	i.mu.Lock()
	before := i.ledger.givenWarmLocked(w.dir.ID, took)
	i.mu.Unlock()
	i.recordEndpoint(w.p.Endpoint)
	i.ledger.recordShim(w.p.Verified())
	err := m.moveIn(ctx, i, w, facts)
	if err == nil {
		if err = w.p.Join(behind{i}, shimproc.Origin{Launched: true, Owned: true}); err != nil {
			err = moveOut(i, w, err)
		}
	}
	if err != nil {
		i.mu.Lock()
		i.ledger.restoreLocked(before)
		i.mu.Unlock()
		m.pool.account.GiveUp(w.entry)
		return err
	}
	failpoint.Here("warm-taken")
	w.logAs(i.id)
	err = m.launcher.LinkSocket(i.namespace, i.id, w.reply.Address)
	return errors.Wrap(err, "cannot give the container's shim the name that it is known by")
}

// logAs makes what the shim logs that of the task which has it; a shim that is shared logs under its own id.
func (w *warmShim) logAs(id string) {
	if w.spec.limits.Share > 1 {
		id = w.dir.ID
	}
	w.p.LogAs(w.spec.namespace, id)
}

// recycle lets the process go on without the instance, whose task it has deleted in good order. False when it is not to
// go on: the caller shuts it down if no instance is left in it.
func (i *Instance) recycle(p *shimproc.Process, orderly bool) bool {
	w := warmth(p)
	if w == nil || !i.takenWarm() {
		return false
	}
	if !orderly {
		i.m.pool.distrust(p)
		return false
	}
	w.leftNow()
	if !i.m.pool.account.Keep(w.entry) {
		return false
	}
	// Before another task may have it: who dials this name means the instance.
	i.m.launcher.UnlinkSocket(i.namespace, i.id, w.reply.Address)
	w.logAs(w.dir.ID)
	i.mu.Lock()
	i.returns = true
	i.mu.Unlock()
	failpoint.Here("warm-kept")
	return true
}

// backToPool gives a process that was kept to the pool, once the instance is cleaned up. Where that failed the process
// ends: it works in a directory that cannot be another task's.
func (i *Instance) backToPool(clean bool) {
	i.mu.Lock()
	returns, p := i.returns, i.proc
	i.returns = false
	i.mu.Unlock()
	if !returns {
		return
	}
	if !clean {
		i.m.pool.distrust(p)
	}
	w := warmth(p)
	// It may have died between the two; then nothing else ends it.
	if i.m.pool.account.Back(w.entry, func() int { return p.Remove(behind{i}) }) || p.IsOver() {
		i.m.pool.finish(w)
	}
	failpoint.Here("warm-recycled")
}
