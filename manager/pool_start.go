// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
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

// errNotWarm: the shim is none that can be started for no container in particular.
var errNotWarm = errors.Wrap(errdefs.ErrNotImplemented, "the shim does not speak version 3 of the Task API")

// launchWarm gives the instance a shim of the pool, or starts one that can be of use to others after it. A binary that
// does not let itself be started so is launched as any other.
func (m *ShimManager) launchWarm(ctx context.Context, i *Instance, facts specFacts, spec poolSpec) (*bootapi.BootstrapResult, error) {
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
		log.G(ctx).WithError(err).Info("cannot start the shim as one that can serve again, starting it for this container alone")
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

// usable tells whether a shim can be given away: it is connected and, where that is asked, it answers and its socket, which tmp cleaners remove, is there for the next daemon. That is awaited without the caller's cancellation,
// which says nothing of the shim.
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
// go on: the caller sends it away if nobody is left in it.
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
	// Before another task may have it: whoever dials this name means the instance.
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

// spare is start, for the account.
func (o *pool) spare(ctx context.Context, spec poolSpec) (*warm.Entry[*warmShim], error) {
	w, err := o.start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return w.entry, nil
}

// start launches a shim for no container in particular and connects to it. When it fails nothing of it is left, or the
// next start of the daemon finds it by its directory.
func (o *pool) start(ctx context.Context, spec poolSpec) (*warmShim, error) {
	m := o.m
	dir, err := m.config.Tasks.layout().CreateWarm()
	if err != nil {
		return nil, err
	}
	w := o.newWarm(dir, shimclient.NewToken(), spec)
	if err := w.launch(ctx, m); err != nil {
		w.undo(ctx, m)
		return nil, err
	}
	return w, nil
}

func (w *warmShim) launch(ctx context.Context, m *ShimManager) error {
	rec := bundle.WarmRecord{
		Namespace: w.spec.namespace, Runtime: w.spec.binary.Runtime, Key: w.spec.key, BootID: shimclient.BootID(),
		Launch: bundle.Launch{Token: w.token, Binary: w.spec.binary.Path, At: time.Now().UTC()},
	}
	// The trace of the launch must be on disk before there is anything to find by it.
	if err := w.dir.WriteRecord(&rec); err != nil {
		return err
	}
	failpoint.Here("warm-recorded")
	logs, err := shimclient.OpenLog(w.dir.LogPath(), log.Fields{"id": w.dir.ID, "namespace": w.spec.namespace})
	if err != nil {
		return errors.Wrap(err, "cannot open the shim's log")
	}
	w.reply, err = m.launcher.Start(ctx, shimclient.StartRequest{
		Binary: w.spec.binary, Protocol: m.config.runtime(w.spec.binary).StartProtocol, Namespace: w.spec.namespace, ID: w.dir.ID,
		Bundle: w.dir.Path, Token: w.token, Options: w.spec.options,
	})
	if err != nil {
		_ = logs.Close()
		return errors.Wrap(err, "cannot start the shim")
	}
	failpoint.Here("warm-started")
	if err := w.register(ctx, m); err != nil {
		_ = logs.Close()
		return err
	}
	w.p.SetLog(logs)
	l, err := w.p.Use(ctx, shimproc.Once)
	if err != nil {
		return errors.Wrapf(err, "cannot connect to the shim at %s", w.p.Endpoint)
	}
	w.p.Verify(ctx, l, w.spec.binary, w.token)
	w.answered = w.p.AnsweredNow()
	rec.Launch.Answered = w.answered
	if pid := w.p.Verified(); pid != (shimclient.ProcessID{}) {
		rec.Shim = &bundle.Proc{Pid: pid.Pid, StartTime: pid.StartTime}
	}
	if rec.Files, err = w.dir.Names(); err != nil {
		return err
	}
	w.home.Store(true) // no task has it yet
	return w.dir.WriteRecord(&rec)
}

// register makes the process known by its address.
func (w *warmShim) register(ctx context.Context, m *ShimManager) error {
	ep, err := shimclient.EndpointOf(w.reply)
	if err != nil {
		return errors.Wrap(err, "cannot use the shim's answer")
	}
	if ep.Version < sandboxVersion || !ep.Local() {
		return errNotWarm
	}
	if err := w.dir.WriteBootstrap(w.reply); err != nil {
		return err
	}
	_, err = m.procs.AttachKept(w, ep, w.facts(shimclient.ProcessID{}), true)
	return err
}

// facts are what is known of the shim's process. pid is its verified pid; zero where that is not known.
func (w *warmShim) facts(pid shimclient.ProcessID) shimproc.KeptFacts {
	return shimproc.KeptFacts{Pid: pid, Answered: w.answered, Token: w.token, Dir: w.dir.Path, Binary: w.spec.binary}
}

// undo removes what a failed launch has made.
func (w *warmShim) undo(ctx context.Context, m *ShimManager) {
	ctx = context.WithoutCancel(ctx)
	if w.p != nil {
		m.pool.account.Ending(w.entry)
		w.p.End()
		m.pool.clear(w)
		return
	}
	ectx, cancel := context.WithTimeout(ctx, endWarmTime)
	defer cancel()
	if err := shimclient.EndLaunch(ectx, w.token, nil); err != nil && !errdefs.IsNotImplemented(err) {
		log.G(ctx).WithError(err).WithField("id", w.dir.ID).Warn("cannot end a warm shim, leaving it for the next start of the daemon")
		return
	}
	m.removeWarm(ctx, w.dir, w.spec.namespace, w.reply.GetAddress())
}
