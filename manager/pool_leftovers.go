// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"maps"
	"slices"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// ended sees to what a warm shim leaves, once its process is over for us: dead, shut down, or ended with a create that
// failed.
func (o *pool) ended(w *warmShim) {
	if o.account.Died(w.entry) {
		return // by end, or by the undoing of its launch, which see to it
	}
	o.m.spawn(func() {
		if pid := w.p.Verified(); pid != (shimclient.ProcessID{}) {
			ctx, cancel := timeout.WithContext(o.m.ctx, shimproc.TimeoutCleanup)
			defer cancel()
			_ = pid.Wait(ctx) // one that goes by itself is given the time to
		}
		o.clear(w)
	})
}

// clear makes sure that nothing of the shim's launch is left and removes its directory and sockets. Its instances
// have left: what is ended here by force has no task, and what containers and their hooks have left behind is not
// touched.
func (o *pool) clear(w *warmShim) {
	token := w.token
	if pid := w.p.Verified(); pid != (shimclient.ProcessID{}) && !pid.Alive() {
		token = "" // it has ended by itself: nothing of its launch is to be ended
	}
	o.m.untilCleared(w.dir, func(ctx context.Context) error {
		w.clearing.Lock()
		defer w.clearing.Unlock()
		if w.cleared {
			return nil
		}
		err := o.m.clearWarm(ctx, w.dir, w.spec.namespace, w.reply.GetAddress(), token, w.sparing())
		w.cleared = err == nil
		return err
	})
}

// sparing tells which carriers of the shim's token are not ended with it: what began since it served, but for the shim
// itself. nil: it has not served, and all that its launch has left is ended.
func (w *warmShim) sparing() func(shimclient.ProcessID) bool {
	from := w.servedFrom()
	if from == 0 {
		return nil
	}
	shim := w.p.Verified()
	return func(id shimclient.ProcessID) bool { return id != shim && id.StartTime >= from }
}

// untilCleared has what is left of a warm shim removed. What fails is tried again with growing pauses until it
// succeeds, in the background; at the end of the daemon it is left for the next start.
func (m *ShimManager) untilCleared(dir *bundle.Warm, try func(context.Context) error) {
	ctx := log.WithLogger(context.WithoutCancel(m.ctx), log.G(m.ctx).WithField("id", dir.ID))
	err := try(ctx)
	if err == nil {
		return
	}
	log.G(ctx).WithError(err).Warn("cannot remove what a warm shim has left; it is tried again until it succeeds")
	since, attempts := time.Now(), 1
	m.spawn(func() {
		cleared := await.RetryLater(m.ctx, m.cleanPauses, func() bool {
			attempts++
			err = try(ctx)
			return err == nil
		})
		if !cleared {
			log.G(ctx).WithError(err).
				Warn("cannot remove what a warm shim has left, leaving it for the next start of the daemon")
			return
		}
		log.G(ctx).WithFields(log.Fields{"after": time.Since(since).Round(time.Millisecond), "attempts": attempts}).
			Info("removed what a warm shim has left, which had failed before")
	})
}

// clearWarm ends what is left of the launch of a warm shim that is over, but what is to be spared, and removes its
// sockets and its directory. "" is the token of no launch.
func (m *ShimManager) clearWarm(
	ctx context.Context, dir *bundle.Warm, namespace, address, token string, spare func(shimclient.ProcessID) bool,
) error {
	if err := m.endWarmLaunch(ctx, token, spare); err != nil {
		return err
	}
	m.removeSocketsOfDead(namespace, []string{dir.ID}, address)
	return dir.Remove()
}

func (m *ShimManager) endWarmLaunch(ctx context.Context, token string, spare func(shimclient.ProcessID) bool) error {
	if token == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, endWarmTime)
	defer cancel()
	by, err := m.procs.LeftOver(token)
	if err == nil {
		err = shimproc.EndLaunch(ctx, by, spare)
	}
	if errdefs.IsNotImplemented(err) {
		return nil
	}
	return errors.Wrap(err, "cannot end the processes of its launch")
}

const (
	// forkTries and forkPause are for what a shim had just forked when it died: it has the shim's socket open, and so
	// answers there, until it becomes the program that it was forked for.
	forkTries = 20
	forkPause = 20 * time.Millisecond
)

// removeSocketsOfDead removes the sockets of a shim that is gone and was alone there.
func (m *ShimManager) removeSocketsOfDead(namespace string, ids []string, addresses ...string) {
	for range forkTries {
		if !m.launcher.RemoveSockets(namespace, ids, addresses...) || !m.sleep(forkPause) {
			return
		}
	}
}

// restoreWarm finds the directories of an earlier daemon's warm shims that wait; those that are bundles come with their
// instances, see restoreHouse. It runs after all instances are attached: a process that one of them is in only gets its
// directory back and ends with the last of them, since it is not known whether all it did went well. The others are
// idle, or were being started.
func (m *ShimManager) restoreWarm(ctx context.Context) {
	found, err := m.config.Tasks.layout().ListWarm()
	if err != nil {
		log.G(ctx).WithError(err).Error("cannot look for warm shims")
	}
	var g errgroup.Group
	g.SetLimit(readers)
	for _, dir := range found {
		g.Go(func() error {
			m.restoreOneWarm(log.WithLogger(ctx, log.G(ctx).WithField("id", dir.ID)), dir)
			return nil
		})
	}
	_ = g.Wait() // nothing fails
}

func (m *ShimManager) restoreOneWarm(ctx context.Context, dir *bundle.Warm) {
	rec, err := dir.ReadRecord()
	switch {
	case errdefs.IsNotFound(err):
		// Nothing was started in it yet, or all but it was removed.
		m.onBegin(func() { m.sweepWarm(dir, &bundle.WarmRecord{}, "") })
		return
	case err != nil:
		log.G(ctx).WithError(err).Error("cannot read the record of a warm shim, leaving it alone")
		return
	}
	r, err := dir.ReadBootstrap()
	if errdefs.IsNotFound(err) && m.lent(dir.ID) {
		log.G(ctx).Error("a warm shim that serves a task does not say how to reach it, leaving it alone")
		return
	}
	if errdefs.IsNotFound(err) || rec.BootID != shimclient.BootID() {
		m.onBegin(func() { m.sweepWarm(dir, rec, r.GetAddress()) })
		return
	}
	if err != nil {
		log.G(ctx).WithError(err).Error("cannot tell how to reach a warm shim, leaving it alone")
		return
	}
	w := m.warmOf(dir, rec)
	w.reply = r
	w.home.Store(true)
	ep, err := shimclient.EndpointOf(r)
	created := false
	if err == nil {
		created, err = m.procs.AttachKept(w, ep, w.facts(ledger.ProcessOf(rec.Shim)), false)
	}
	if err != nil {
		log.G(ctx).WithError(err).Error("cannot use the record of a warm shim, leaving it alone")
		return
	}
	// A crash may have come between the return of the directory and its emptying, or before it was lent.
	eerr := dir.Empty()
	if eerr != nil {
		log.G(ctx).WithError(eerr).Error("cannot use the directory of a warm shim again")
	}
	if !created || eerr != nil {
		m.pool.distrust(w.p) // before one of those in it can be deleted
	}
	m.onBegin(func() { w.takeOver(ctx, m, created) })
}

// sparingAfter spares what began after a shim had answered, and may have served; nothing where it did not come to that.
func sparingAfter(answered uint64) func(shimclient.ProcessID) bool {
	if answered == 0 {
		return nil
	}
	return func(id shimclient.ProcessID) bool { return id.StartTime > answered }
}

// lent tells whether an instance's record names the warm shim.
func (m *ShimManager) lent(id string) bool {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.instances))
	m.mu.Unlock()
	return slices.ContainsFunc(all, func(i *Instance) bool {
		return i.ledger.Passage().Warm == id
	})
}

// takeOver continues what the last daemon had begun with a warm shim: its log, and if no instance is in it the waiting
// for a task.
func (w *warmShim) takeOver(ctx context.Context, m *ShimManager, idle bool) {
	if err := w.listen(); err != nil {
		log.G(ctx).WithError(err).Warn("cannot open the log of a restored shim")
	}
	if !idle {
		if in := instancesOf(w.p); len(in) == 1 {
			w.p.LogAs(in[0].namespace, in[0].id)
		}
		return
	}
	l, err := w.p.Use(ctx, shimproc.Once)
	if err != nil && w.p.IsOver() {
		return
	}
	if err == nil {
		w.p.Verify(ctx, l, w.spec.binary, w.token)
	}
	// Its bundle may be one that we cannot see.
	if pid, has := w.hasChildren(ctx); has {
		log.G(ctx).WithField("pid", pid.Pid).
			Error("found a warm shim without a bundle that has processes, leaving it alone")
		return
	}
	if err != nil || w.spec.limits.Warm <= 0 || w.p.Ask(ctx, l.Task) != nil {
		m.pool.distrust(w.p) // first: no task is to get it
	}
	w.hush()
	m.pool.account.Put(w.entry, 0)
}

// hasChildren tells which of the shim's processes, if any, runs others, or may run some. One that does not answer may
// not have a verified pid.
func (w *warmShim) hasChildren(ctx context.Context) (shimclient.ProcessID, bool) {
	ctx, cancel := context.WithTimeout(ctx, shimproc.ScanTime)
	defer cancel()
	pids := []shimclient.ProcessID{w.p.Verified()}
	if !pids[0].Alive() {
		var err error
		if pids, err = shimclient.FindByToken(ctx, w.token); err != nil {
			return shimclient.ProcessID{}, !errdefs.IsNotImplemented(err)
		}
	}
	for _, pid := range pids {
		if has, err := pid.HasChildren(ctx); has || err != nil && !errdefs.IsNotImplemented(err) {
			return pid, true
		}
	}
	return shimclient.ProcessID{}, false
}

// sweepWarm removes what is left of a launch that a crash cut short, or of a shim from before a reboot. A directory that
// a process works in is left alone for as long as it does.
func (m *ShimManager) sweepWarm(dir *bundle.Warm, rec *bundle.WarmRecord, address string) {
	any := func(shimclient.ProcessID) bool { return true }
	m.untilCleared(dir, func(ctx context.Context) error {
		if err := m.endWarmLaunch(ctx, rec.Launch.Token, sparingAfter(rec.Launch.Answered)); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, endWarmTime)
		defer cancel()
		works, err := shimproc.Found(ctx, nil, []string{dir.Path}, any)
		if works && !errdefs.IsNotImplemented(err) {
			if err == nil {
				err = errors.New("a process works in it")
			}
			return errors.Wrap(err, "its directory is left alone")
		}
		if err := m.clearWarm(ctx, dir, rec.Namespace, address, "", nil); err != nil {
			return err
		}
		log.G(ctx).Info("removed a warm shim that was left behind")
		return nil
	})
}

// loadHouse is the warm shim whose directory the bundle is, nil when it is none's. id is the shim that serves the
// instance.
func (i *Instance) loadHouse(ctx context.Context, b *bundle.Bundle, id string) *warmShim {
	if id == "" {
		// Our record is lost, or it is no warm shim's.
		var err error
		if id, err = b.LentID(); err != nil {
			return nil
		}
	}
	dir, err := i.layout.Lent(b, id)
	if errdefs.IsNotFound(err) {
		return nil // another task of the shim has it
	}
	var rec *bundle.WarmRecord
	if err == nil {
		rec, err = dir.ReadRecord()
	}
	if err != nil {
		log.G(ctx).WithError(err).Error("cannot use the record of the warm shim whose directory a bundle is")
		return nil
	}
	return i.m.warmOf(dir, rec)
}

// restoreHouse makes the process of a restored instance whose bundle is the directory of a warm shim the pool's, which
// ends it with the last that is in it: it is not known whether all that it did went well.
func (i *Instance) restoreHouse(ctx context.Context, p *shimproc.Process) {
	i.mu.Lock()
	w := i.house
	i.mu.Unlock()
	if w == nil {
		return
	}
	w.reply = &bootapi.BootstrapResult{}
	if p.LostAddress() == nil {
		ep := p.Endpoint
		w.reply = &bootapi.BootstrapResult{Version: int32(ep.Version), Protocol: ep.Protocol, Address: ep.Address}
	}
	if err := p.KeepFor(w, w.facts(shimclient.ProcessID{})); err != nil {
		log.G(ctx).WithError(err).Error("cannot use the record of a warm shim; it ends with its task")
		return
	}
	i.m.pool.distrust(w.p)
	i.m.onBegin(func() { w.takeOver(ctx, i.m, false) })
}
