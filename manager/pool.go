// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/ledger"
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

// listen has what the shim logs copied from now on.
func (w *warmShim) listen() error {
	if w.p.Log() != nil {
		return nil
	}
	logs, err := shimclient.OpenLog(w.dir.LogPath(), log.Fields{"id": w.dir.ID, "namespace": w.spec.namespace})
	if err != nil {
		return err
	}
	w.p.SetLog(logs)
	return nil
}

// hush closes the log of a shim that no task has: it has nothing to say, and a container leaves the daemon no fifo, as
// upstream's TestShimDoesNotLeakPipes wants it. Of runc's only, which are known to outlive a write that nobody reads
// (containerd's pkg/shim catches SIGPIPE), and not of one that is shared, which another task may be about to take.
func (w *warmShim) hush() {
	if w.spec.binary.Runtime == plugins.RuntimeRuncV2 && w.spec.limits.Share <= 1 {
		w.p.CloseLog()
	}
}

// warmth of the process; nil for one that was started for one instance.
func warmth(p *shimproc.Process) *warmShim {
	w, _ := p.Keeper().(*warmShim)
	return w
}

// startID is the id that the shim was started under.
func (w *warmShim) StartID() string { return w.dir.ID }

func (w *warmShim) Runtime() string { return w.spec.binary.Runtime }

// take makes p the process of the shim.
func (w *warmShim) Take(p *shimproc.Process) { w.p = p }

// warmOf is a warm shim as its record tells of it, without a process.
func (m *ShimManager) warmOf(dir *bundle.Warm, rec *bundle.WarmRecord) *warmShim {
	metrics.Resolved(rec.Runtime)
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

// errNameless: the shim does not give its id to what it runs. No launch of its binary relies on it from now on.
var errNameless = errors.New("the shim does not pass on its id")

// errNotWarm: the shim is none that can be started for no container in particular.
var errNotWarm = errors.Wrap(errdefs.ErrNotImplemented, "the shim does not speak version 3 of the Task API")

// spare is start, for the account.
func (o *pool) spare(ctx context.Context, spec poolSpec) (*warm.Entry[*warmShim], error) {
	w, err := o.start(ctx, spec)
	if err != nil {
		return nil, err
	}
	w.hush()
	return w.entry, nil
}

// start launches a shim for no container in particular and connects to it. When it fails nothing of it is left, or the
// next start of the daemon finds it by its directory.
func (o *pool) start(ctx context.Context, spec poolSpec) (*warmShim, error) {
	w, err := o.tryStart(ctx, spec)
	if errors.Is(err, errNameless) {
		log.G(ctx).WithError(err).WithField("shim", spec.binary.Path).
			Info("a shim is not to be found by its id; starting it once more, with a variable in its environment")
		w, err = o.tryStart(ctx, spec)
	}
	return w, err
}

func (o *pool) tryStart(ctx context.Context, spec poolSpec) (*warmShim, error) {
	dir, err := o.m.config.Tasks.layout().CreateWarm()
	if err != nil {
		return nil, err
	}
	// Nothing of ours is in the environment of containers' hooks, where the shim gives them what it is found by itself.
	token := shimclient.NewToken()
	if o.m.launcher.PassesOnID(spec.binary) {
		token = shimclient.NamedToken(dir.ID)
	}
	w := o.newWarm(dir, token, spec)
	if _, _, err := o.m.start(ctx, &warmLaunch{o: o, w: w}); err != nil {
		o.undo(w)
		return nil, err
	}
	return w, nil
}

// warmLaunch is the launch of a shim for a directory that waits for its container.
type warmLaunch struct {
	o   *pool
	w   *warmShim
	rec bundle.WarmRecord
}

func (t *warmLaunch) record() (shimclient.StartRequest, string, error) {
	w := t.w
	b := w.spec.binary
	t.rec = bundle.WarmRecord{
		Namespace: w.spec.namespace, Runtime: b.Runtime, Key: w.spec.key, BootID: shimclient.BootID(),
		Launch: bundle.Launch{Token: w.token, Binary: b.Path, At: time.Now().UTC()},
	}
	if err := w.dir.WriteRecord(&t.rec); err != nil {
		return shimclient.StartRequest{}, "", err
	}
	failpoint.Here("warm-recorded")
	return shimclient.StartRequest{
		Binary: b, Protocol: t.o.m.config.runtime(b).StartProtocol, Namespace: w.spec.namespace, ID: w.dir.ID,
		Bundle: w.dir.Path, Token: w.token, Options: w.spec.options,
	}, w.dir.LogPath(), nil
}

func (t *warmLaunch) started(r *bootapi.BootstrapResult) {
	t.w.reply = r
	failpoint.Here("warm-started")
}

func (t *warmLaunch) attach(
	_ context.Context, ep shimclient.Endpoint, r *bootapi.BootstrapResult,
) (*shimproc.Process, bool, error) {
	if ep.Version < sandboxVersion || !ep.Local() {
		return nil, false, errNotWarm
	}
	if err := t.w.dir.WriteBootstrap(r); err != nil {
		return nil, false, err
	}
	created, err := t.o.m.procs.AttachKept(t.w, ep, t.w.facts(shimclient.ProcessID{}), true)
	return t.w.p, created, err
}

func (t *warmLaunch) dial(ctx context.Context, p *shimproc.Process) (*shimproc.Link, error) {
	return p.Use(ctx, shimproc.Once)
}

func (t *warmLaunch) connected(ctx context.Context, p *shimproc.Process, l *shimproc.Link, _ bool) (err error) {
	w := t.w
	p.Verify(ctx, l, w.spec.binary, w.token)
	w.answered = p.AnsweredNow()
	if err := t.o.m.launcher.CheckNamed(ctx, w.spec.binary, w.token, p.Verified()); err != nil {
		return errors.Wrapf(errNameless, "%v", err)
	}
	t.rec.Launch.Answered = w.answered
	t.rec.Shim = ledger.ProcOf(p.Verified())
	if t.rec.Files, err = w.dir.Names(); err != nil {
		return err
	}
	w.home.Store(true) // no task has it yet
	return w.dir.WriteRecord(&t.rec)
}

// facts are what is known of the shim's process. pid is its verified pid; zero where that is not known.
func (w *warmShim) facts(pid shimclient.ProcessID) shimproc.KeptFacts {
	return shimproc.KeptFacts{Pid: pid, Answered: w.answered, Token: w.token, Dir: w.dir.Path, Binary: w.spec.binary}
}

// undo removes what a failed launch has made.
func (o *pool) undo(w *warmShim) {
	if w.p != nil {
		o.account.Ending(w.entry)
		w.p.End()
		o.clear(w)
		return
	}
	o.m.untilCleared(w.dir, func(ctx context.Context) error {
		return o.m.clearWarm(ctx, w.dir, w.spec.namespace, w.reply.GetAddress(), w.token, nil)
	})
}

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
