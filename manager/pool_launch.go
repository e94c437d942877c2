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
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient"
)

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
