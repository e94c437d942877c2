// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
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
	// goodbyeTime is for a shim that serves no task to go by itself. It is a part of Close's time.
	goodbyeTime = 2 * time.Second
	// endWarmTime bounds the end of what a launch has left.
	endWarmTime = 10 * time.Second
)

// poolSpec is what a container wants of a shim that was not started for it.
type poolSpec struct {
	key       string // see warm.Keys
	namespace string
	binary    shimclient.Binary
	options   *anypb.Any
	limits    PoolConfig
}

// warmShim is a shim process that was started for no container in particular. It serves one task after the other, or
// several at once where config shares it.
type warmShim struct {
	entry *warm.Entry[*warmShim]
	dir   *bundle.Warm
	p     *shimproc.Process
	reply *bootapi.BootstrapResult
	spec  poolSpec
	token string
	// answered is when it ran and had no task yet, in clock ticks since boot; 0 when that is not known.
	answered uint64
	// home: its directory waits in its own place, for the next task whose bundle it may be.
	home atomic.Bool

	// using guards when the first task took it and when one was last about to leave, in clock ticks since boot; 0: none
	// has. Nothing else is done under it.
	using sync.Mutex
	// +checklocks:using
	served uint64
	// +checklocks:using
	left uint64

	// clearing orders the removal of what it leaves and the return of its directory, and guards cleared.
	clearing sync.Mutex
	// +checklocks:clearing
	cleared bool
}

// pool launches warm shims, gives them to tasks and ends them. Which there are, and which may be given, is the
// account's.
type pool struct {
	m       *ShimManager
	account *warm.Account[*warmShim]
	keys    *warm.Keys
	refused *warm.Refused[shimclient.FileID]
	// trusted is how long an idle shim is given away unasked.
	trusted time.Duration
}

func newPool(m *ShimManager) *pool {
	o := &pool{m: m, keys: new(warm.Keys), refused: new(warm.Refused[shimclient.FileID]), trusted: trusted}
	o.account = warm.New(m.ctx, warm.Config[*warmShim]{
		Limit: m.config.WarmLimit, Idle: m.config.WarmIdle,
		Memory: warm.MemoryRule(m.config.WarmMemory), Machine: m.config.machine,
		Busy:    func() bool { return m.launcher.Waiting() > 0 },
		Held:    func(w *warmShim) (uint64, error) { return w.p.Verified().OwnMemory() },
		End:     o.end,
		Spawn:   func(f func()) { m.spawn(f) },
		Retired: metrics.WarmEnded,
	})
	return o
}

// newWarm makes a warm shim without a process.
func (o *pool) newWarm(dir *bundle.Warm, token string, spec poolSpec) *warmShim {
	w := &warmShim{dir: dir, token: token, spec: spec}
	w.entry = o.account.Enter(w, spec.key, warm.Limits(spec.limits))
	return w
}

// tookNow notes that a task takes the shim, and returns the moment: what began before it is not the task's. What the
// one before has left behind may have begun within the same tick.
func (w *warmShim) tookNow() uint64 {
	w.using.Lock()
	defer w.using.Unlock()
	now := shimclient.Now()
	if w.served == 0 {
		w.served = now
	}
	if w.left != 0 {
		now = max(now, w.left+1)
	}
	return now
}

// leftNow notes that a task is about to leave the shim.
func (w *warmShim) leftNow() {
	now := shimclient.Now()
	w.using.Lock()
	defer w.using.Unlock()
	w.left = now
}

// servedFrom is when the first task took it, in clock ticks since boot; 0: none has.
func (w *warmShim) servedFrom() uint64 {
	w.using.Lock()
	defer w.using.Unlock()
	return w.served
}

// distrust retires a process that did not do as it should: left a call unanswered, lost its connection, failed a create
// or a delete. What it serves stays with it. Nothing happens to a process that is not the pool's.
func (o *pool) distrust(p *shimproc.Process) {
	if p == nil {
		return
	}
	if w := warmth(p); w != nil {
		o.account.Distrust(w.entry)
	}
}

// warmth of the process; nil for one that was started for one instance.
func warmth(p *shimproc.Process) *warmShim {
	w, _ := p.Keeper().(*warmShim)
	return w
}

// startID is the id that the shim was started under.
func (w *warmShim) StartID() string { return w.dir.ID }

// take makes p the process of the shim.
func (w *warmShim) Take(p *shimproc.Process) { w.p = p }

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
			log.G(o.m.ctx).WithError(err).WithField("address", w.p.Endpoint).
				Info("an idle shim does not shut down, ending it")
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
	m.spawn(func() {
		cleared := await.RetryLater(m.ctx, m.cleanPauses, func() bool {
			err = try(ctx)
			return err == nil
		})
		if !cleared {
			log.G(ctx).WithError(err).
				Warn("cannot remove what a warm shim has left, leaving it for the next start of the daemon")
		}
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

// warmOf is a warm shim as its record tells of it, without a process.
func (m *ShimManager) warmOf(dir *bundle.Warm, rec *bundle.WarmRecord) *warmShim {
	b := shimclient.Binary{Runtime: rec.Runtime, Path: rec.Launch.Binary}
	w := m.pool.newWarm(dir, rec.Launch.Token, poolSpec{
		key: rec.Key, namespace: rec.Namespace, binary: b, limits: m.config.pool(b),
	})
	w.answered = rec.Launch.Answered
	if w.answered != 0 {
		w.using.Lock()
		defer w.using.Unlock()
		w.served = w.answered + 1 // it may have been
	}
	return w
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
