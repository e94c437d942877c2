// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// goodbyeTime is for a shim that serves no task to go by itself. It is a part of Close's time.
const goodbyeTime = 2 * time.Second

// finish ends a shim that has no instance and is given to no task any more, in the background.
func (o *pool) finish(w *warmShim) {
	o.m.spawn(func() { o.end(w) })
}

// end is finish, and waits for it. A process that an instance has joined meanwhile, by its address, ends with that.
func (o *pool) end(w *warmShim) {
	if !w.p.CloseIfEmpty() {
		return
	}
	o.account.Ending(w.entry)
	if !w.p.IsOver() {
		ctx, cancel := context.WithTimeout(o.m.ctx, goodbyeTime)
		defer cancel()
		if err := w.p.ShutDown(ctx, w.dir.ID); err != nil {
			log.G(o.m.ctx).WithError(err).WithField("address", w.p.Endpoint).Info("an idle shim does not shut down, ending it")
		}
	}
	w.p.End()
	o.clear(w)
}

// ended sees to what a warm shim leaves, once its process is over for us: dead, shut down, or ended with a create that
// failed.
func (o *pool) ended(w *warmShim) {
	if o.account.Died(w.entry) {
		return // by end, or by the undoing of its launch, which see to it
	}
	o.m.spawn(func() {
		if pid := w.p.Verified(); pid != (shimclient.ProcessID{}) {
			ctx, cancel := timeout.WithContext(o.m.ctx, TimeoutCleanup)
			defer cancel()
			_ = pid.Wait(ctx) // one that goes by itself is given the time to
		}
		o.clear(w)
	})
}

// clear makes sure that nothing of the shim's launch is left and removes its directory and sockets. Its instances
// have left: what is ended here by force has no task, and what containers and their hooks have left behind is not
// touched. What cannot be done is left for the next start of the daemon.
func (o *pool) clear(w *warmShim) {
	w.clearing.Lock()
	defer w.clearing.Unlock()
	if w.cleared {
		return
	}
	ctx := context.WithoutCancel(o.m.ctx)
	if pid := w.p.Verified(); (pid == shimclient.ProcessID{}) || pid.Alive() {
		ctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
		defer cancel()
		if err := shimclient.EndLaunch(ctx, w.token, w.sparing()); err != nil {
			log.G(ctx).WithError(err).WithField("id", w.dir.ID).
				Warn("cannot end a warm shim, leaving it for the next start of the daemon")
			return
		}
	}
	o.m.removeWarm(ctx, w.dir, w.spec.namespace, w.reply.GetAddress())
	w.cleared = true
}

// removeWarm removes the sockets and the directory of a warm shim that is gone.
func (m *ShimManager) removeWarm(ctx context.Context, dir *bundle.Warm, namespace, address string) {
	m.launcher.RemoveSockets(namespace, []string{dir.ID}, address)
	if err := dir.Remove(); err != nil {
		log.G(ctx).WithError(err).
			Warn("cannot remove the directory of a warm shim, leaving it for the next start of the daemon")
	}
}
