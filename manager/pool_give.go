// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"
	"runtime"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient"
)

// errAlone: the shim is to be started for its container alone.
var errAlone = errors.New("the shim cannot be started as one that can serve again")

// launchWarm gives the instance a shim of the pool, or starts one that can be of use to others after it. A binary that
// does not let itself be started so is launched as any other: errAlone.
func (m *ShimManager) launchWarm(
	ctx context.Context, i *Instance, spec poolSpec,
) (*bootapi.BootstrapResult, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
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
		if err := w.listen(); err != nil {
			i.logger(ctx).WithError(err).WithField("shim", w.dir.ID).Warn("cannot use a warm shim")
			m.pool.account.GiveUp(e)
			continue
		}
		err := m.occupy(ctx, i, w)
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
		if ctx.Err() != nil || m.ctx.Err() != nil || errdefs.IsPermissionDenied(err) {
			return nil, err // alone it could be started no better
		}
		i.logger(ctx).WithError(err).
			Info("cannot start the shim as one that can serve again, starting it for this container alone")
		m.pool.refused.Add(spec.binary.File)
		return nil, errAlone
	}
	m.pool.account.Missed(spec.key, spec.limits.Warm)
	m.pool.account.Put(w.entry, 1)
	i.ledger.StartedWarm()
	if err := m.occupy(ctx, i, w); err != nil {
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
// daemon may die at any. When it fails and returns ErrDead or ErrClosing, nothing of it is left; after another
// failure what is left is undone with the create.
func (m *ShimManager) occupy(ctx context.Context, i *Instance, w *warmShim) error {
	took := w.tookNow()
	takeBack := i.ledger.GivenWarm(w.dir.ID, took)
	i.recordEndpoint(w.p.Endpoint)
	i.ledger.RecordShim(w.p.Verified())
	err := m.moveIn(ctx, i, w)
	if err == nil {
		if err = w.p.Join(behind{i}, shimproc.Origin{Launched: true, Owned: true}); err != nil {
			err = moveOut(i, w, err)
		}
	}
	if err != nil {
		takeBack()
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
	// Before another task may have it: clients mean the instance by this name.
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
	if clean {
		w.hush()
	}
	// It may have died between the two; then nothing else ends it.
	if i.m.pool.account.Back(w.entry, func() int { return p.Remove(behind{i}) }) || p.IsOver() {
		i.m.pool.finish(w)
	}
	failpoint.Here("warm-recycled")
}

// The directory of a warm shim, in which it works and with it all that it runs, becomes the bundle of its task, and
// waits in a place of its own when there is none. Of several tasks in one shim only one can have it; the others'
// bundles are directories of their own, and their OCI runtime works in that of the first.

// moveIn makes the directory of a shim that the instance was given its bundle, or makes one beside it where another
// task has that.
func (m *ShimManager) moveIn(ctx context.Context, i *Instance, w *warmShim) error {
	if !w.home.Swap(false) { // another task of the shim has it
		return m.moveBeside(ctx, i, w)
	}
	return metrics.MakingBundle(func() error { return lendHome(i, w) })
}

// lendHome makes the directory of the shim the bundle. That of a shim which is found dead meanwhile is removed, or
// about to be: shimproc.ErrDead.
func lendHome(i *Instance, w *warmShim) error {
	w.clearing.Lock()
	defer w.clearing.Unlock()
	if w.p.IsOver() {
		return shimproc.ErrDead
	}
	i.mu.Lock()
	binary := i.binary
	i.mu.Unlock()
	d, err := w.dir.Assemble(i.namespace, i.id, bundle.AssembleOptions{
		CreateOptions: i.request.files(), Binary: binary.Path, Record: i.ledger.Record(),
	})
	if err != nil {
		return err
	}
	failpoint.Here("warm-assembled")
	if err := w.dir.Lend(d); err != nil {
		return err
	}
	i.mu.Lock()
	i.bundle, i.house = d, w
	i.mu.Unlock()
	failpoint.Here("warm-lent")
	return nil
}

// moveBeside makes the bundle of a task that shares a shim with the one whose bundle the shim's directory is.
func (m *ShimManager) moveBeside(ctx context.Context, i *Instance, w *warmShim) error {
	if err := m.prepare(ctx, i); err != nil {
		return err
	}
	// The record first: a bundle with a bootstrap and without a record is one of stock containerd, of a task that was
	// created.
	if err := i.ledger.Persist(); err != nil {
		return err
	}
	failpoint.Here("warm-beside")
	d := i.home()
	if err := d.WriteBootstrap(w.reply); err != nil {
		return err
	}
	if err := w.dir.LendLog(d); err != nil {
		i.logger(ctx).WithError(err).Warn("the shim's log could not be drained by another containerd after a rollback")
	}
	return nil
}

// moveOut undoes moveIn, of an instance that nothing was told to yet, and returns why; another error where it fails.
func moveOut(i *Instance, w *warmShim, why error) error {
	i.mu.Lock()
	d, house := i.bundle, i.house
	i.mu.Unlock()
	w.clearing.Lock()
	defer w.clearing.Unlock()
	if house != nil && !w.p.IsOver() { // else nothing comes back for it where it waits, and it goes with the bundle
		if err := d.Return(w.dir); err != nil {
			return errors.Wrapf(err, "cannot undo a bundle after this: %v", why)
		}
	}
	if err := d.Remove(); err != nil {
		return errors.Wrapf(err, "cannot undo a bundle after this: %v", why)
	}
	i.mu.Lock()
	i.bundle, i.house = nil, nil
	i.mu.Unlock()
	return why
}

// specFor says what shim of the pool could serve a new task, if any could.
func (o *pool) specFor(i *Instance, b shimclient.Binary, opts *anypb.Any) (poolSpec, bool) {
	limits := o.m.config.pool(b)
	if runtime.GOOS != "linux" || i.kind != life.Task || limits.Warm <= 0 || o.refused.Has(b.File) {
		return poolSpec{}, false
	}
	r := i.request
	if !(warm.Wish{ID: i.id, Groups: r.groups, RuncGroup: r.runcGroup, Options: opts}).Allowed() {
		return poolSpec{}, false
	}
	key := o.key(i.namespace, b, opts)
	return poolSpec{key: key, namespace: i.namespace, binary: b, options: opts, limits: limits}, true
}

// key of the shims that a create could take: what this daemon would give to a shim which it started for it.
func (o *pool) key(namespace string, b shimclient.Binary, opts *anypb.Any) string {
	c := &o.m.config
	parts := []string{
		namespace, b.Runtime, b.Path, fmt.Sprint(b.File), opts.GetTypeUrl(), string(opts.GetValue()),
		log.GetLevel().String(), c.SocketDir, c.GRPCAddress, c.TTRPCAddress,
	}
	parts = append(parts, c.Env...)
	return o.keys.Of(append(parts, c.runtime(b).Env...)...)
}

// vacate takes the directory of a warm shim out of the bundle of a task that has ended. That of a shim which goes on
// waits for another task then; of one that is over it goes with the bundle.
func (o *pool) vacate(w *warmShim, d *bundle.Bundle) error {
	if w.p == nil {
		// How to reach it is not known, and it is not there any more.
		o.m.removeSocketsOfDead(w.spec.namespace, []string{w.dir.ID})
		return nil
	}
	return o.takeHome(w, d)
}

// takeHome moves the directory of a shim that goes on without the task whose bundle it was to where it waits, and
// empties it.
func (o *pool) takeHome(w *warmShim, d *bundle.Bundle) error {
	w.clearing.Lock()
	defer w.clearing.Unlock()
	if w.p.IsOver() {
		return nil
	}
	err := d.Return(w.dir)
	if errdefs.IsNotFound(err) {
		o.distrust(w.p) // it works in a directory that is not there any more
		return nil
	}
	if err != nil {
		return err
	}
	failpoint.Here("warm-returned")
	if err := w.dir.Empty(); err != nil {
		return err
	}
	failpoint.Here("warm-emptied")
	w.home.Store(true)
	return nil
}
