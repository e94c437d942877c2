// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"path/filepath"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"go.opentelemetry.io/otel/trace"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/spans"
	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient"
)

// buildTask makes all of a task whose id is reserved, step by step. What it has made when it fails is for the caller to
// undo.
func (m *ShimManager) buildTask(ctx context.Context, i *Instance, opts runtime.CreateOpts, w *watched) error {
	r, err := readRequest(opts)
	if err != nil {
		return err
	}
	to, joinErr := m.sandboxShimFor(ctx, i, opts)
	b, err := m.binaryFor(ctx, opts.Runtime, to)
	if err != nil {
		return err
	}
	if len(r.idmapped) > 0 {
		if err := m.features.CheckIDMap(ctx, b, r.options, r.idmapped); err != nil {
			return err
		}
	}
	defer i.describe(r, b)()
	// The shim starts before the mounts are activated: it says which of them it does itself.
	ctx = w.enter(metrics.PhaseLaunch)
	if joinErr != nil {
		return joinErr
	}
	ctx, turn, err := m.turnFor(ctx, i, to)
	if err != nil {
		return err
	}
	defer turn.End()
	boot, err := m.shimFor(ctx, i, to)
	if err != nil {
		return err
	}
	w.launchedBy(i)
	failpoint.Here("create-shim")
	ctx = w.enter(metrics.PhaseMounts)
	rootfs, owned, err := m.mounts.Activate(ctx, i.id, b, boot, opts.Rootfs)
	if owned {
		i.activated()
	}
	if err != nil {
		return err
	}
	failpoint.Here("create-mounts")
	ctx = w.enter(metrics.PhaseCreate)
	turn.Within(m.createTurn)
	pid, err := i.createTask(ctx, opts, rootfs)
	turn.End()
	if err != nil {
		return err
	}
	// Some shims, runwasi's among them, know no Connect before they have a task.
	i.verifyAgain(ctx)
	failpoint.Here("create-task")
	if opts.RestoreFromPath {
		if pid, err = i.restoreCheckpoint(ctx, opts.Checkpoint); err != nil {
			return err
		}
	}
	i.onCreated(pid, opts.IO)
	i.ledger.PlaceMemory(i.shimPid())
	i.ledger.Save()
	i.cleanUpIfDead()
	failpoint.Here("create-recorded")
	return nil
}

// turnFor waits for the turn of a create that is to have a shim of its own, where that is runc's: it goes on until runc
// is done too, so that in a storm of creates each that has begun has the CPUs until its container is there, and the
// first to come is the first up. What other runtimes do in Create may be waiting, as for a virtual machine's start. A
// create in another's group waits for the group's launches (launch), and would keep others from a turn meanwhile: it
// has one for its start only.
func (m *ShimManager) turnFor(ctx context.Context, i *Instance, to *sandboxShim) (
	context.Context, *shimclient.Turn, error,
) {
	b := i.startedFrom()
	if to != nil || b.Runtime != plugins.RuntimeRuncV2 || warm.IsGrouped(i.id, i.request.groups) {
		return ctx, nil, nil
	}
	ctx, turn, err := m.launcher.TakeTurn(ctx)
	return ctx, turn, errors.Wrap(err, "cannot start a shim")
}

// strandedLimit is how many Creates of callers that have left a shim may leave unanswered before it gets no further
// one. Each keeps an instance and a goroutine until it is answered.
const strandedLimit = 8

// createTask sends Create. When ctx ends first, the call goes on without the caller and its answer is left for the undo
// to wait for.
func (i *Instance) createTask(ctx context.Context, opts runtime.CreateOpts, rootfs []mount.Mount) (uint32, error) {
	req := &taskapi.CreateTaskRequest{
		ID: i.id, Bundle: i.home().Path,
		Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		Checkpoint: opts.Checkpoint, Options: i.request.options, Rootfs: mount.ToProto(rootfs),
	}
	var resp *taskapi.CreateTaskResponse
	err := i.detached(ctx, func(ctx context.Context) (err error) {
		resp, err = i.sendCreate(ctx, req)
		return err
	})
	if err != nil {
		return 0, err
	}
	return resp.Pid, nil
}

// detached runs a create call that must not be abandoned half way. It fails with Unavailable, and nothing is sent,
// where the shim owes the answers to too many such calls already.
func (i *Instance) detached(ctx context.Context, call func(context.Context) error) error {
	if p := i.process(); p != nil && stranded(p) >= strandedLimit {
		return errors.Wrapf(errdefs.ErrUnavailable,
			"shim at %s has left %d creates unanswered whose callers have given up; "+
				"it gets no further one before it answers", p.Endpoint, strandedLimit)
	}
	send := func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) }
	c, left := outlast(ctx, func(f func()) { go f() }, send)
	if left {
		i.creation.OnCallerLeft(c.done)
		return errors.Wrapf(ctx.Err(), "creating %s %s", i.kind, i.id)
	}
	return c.err
}

// stranded counts the Creates that have not been answered since their callers left.
func stranded(p *shimproc.Process) (n int) {
	for _, i := range instancesOf(p) {
		if i.creation.Owed() != nil {
			n++
		}
	}
	return n
}

func (i *Instance) sendCreate(
	ctx context.Context, req *taskapi.CreateTaskRequest,
) (resp *taskapi.CreateTaskResponse, err error) {
	i.creation.SetCut(true)
	err = i.call(ctx, shimproc.Forced, func(ctx context.Context, t *shimclient.Task) error {
		resp, err = t.Create(ctx, req)
		return err
	})
	i.creation.SetCut(errors.Is(err, shimclient.ErrConnectionLost) || errors.Is(err, shimproc.ErrDead))
	return resp, err
}

// rootfsDiff is the archive of what a container had changed in its rootfs, beside the checkpoint's directory: part of
// the layout that CRIU tooling writes (github.com/checkpoint-restore/checkpointctl).
const rootfsDiff = "rootfs-diff.tar"

// restoreCheckpoint finishes a create that CRI restores from a checkpoint: the rootfs diff goes in once the shim has
// mounted the rootfs and before the process starts, and the process is started here since CRI takes a restored
// container for a running one.
func (i *Instance) restoreCheckpoint(ctx context.Context, checkpoint string) (uint32, error) {
	if err := i.applyDiff(ctx, filepath.Join(checkpoint, "..", rootfsDiff)); err != nil {
		return 0, err
	}
	pid, err := i.sendStart(ctx, "")
	return pid, errors.Wrap(err, "cannot start the restored container")
}

func (i *Instance) applyDiff(ctx context.Context, path string) error {
	// A checkpoint comes from wherever its user had it from: a link could name any archive of the host's, and at a fifo
	// the create would wait for ever.
	f, err := bundle.OpenRegular(path)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return errors.Wrap(err, "cannot open the checkpoint's rootfs diff")
	}
	defer f.Close()
	stream, err := compression.DecompressStream(f)
	if err != nil {
		return errors.Wrapf(err, "cannot decompress %s", path)
	}
	defer stream.Close()
	rootfs := i.home().Rootfs()
	if _, err := archive.Apply(ctx, rootfs, stream); err != nil {
		return errors.Wrapf(err, "cannot unpack %s into %s", path, rootfs)
	}
	return nil
}

// watched is a create that is being measured. For one goroutine.
type watched struct {
	ctx            context.Context // of the span of the whole
	endSpan        func(error)
	begin, entered time.Time
	phase          string
	phaseSpan      trace.Span
	endPhase       func(error) // nil where the phase has no span
}

// watchCreate begins to measure a create, and its span. The context is for its first phase.
func watchCreate(ctx context.Context, i *Instance) (context.Context, *watched) {
	w := &watched{begin: time.Now()}
	ctx, w.endSpan = i.startSpan(ctx, spans.Create)
	w.ctx = spans.WithCreate(ctx)
	return w.enter(metrics.PhaseResolve), w
}

// enter ends the present phase of the create and begins another, whose context it returns. "" is for none.
func (w *watched) enter(phase string) context.Context {
	w.leave(nil)
	w.phase, w.entered = phase, time.Now()
	if phase == "" || phase == metrics.PhaseCreate { // the call has a span of its own
		return w.ctx
	}
	ctx, end := spans.Child(w.ctx, spans.Create+"."+phase)
	w.endPhase, w.phaseSpan = end, trace.SpanFromContext(ctx)
	return ctx
}

// leave ends the present phase. Only one that went well counts.
func (w *watched) leave(err error) {
	if w.phase != "" && err == nil {
		metrics.Phase(w.phase, w.entered)
	}
	if w.endPhase != nil {
		w.endPhase(err)
		w.endPhase = nil
	}
}

// launchedBy tells the phase that is about to end by its right name: only now it is known whether a shim was started.
func (w *watched) launchedBy(i *Instance) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ledger.Passage().Source() != metrics.Start {
		w.phase = metrics.PhaseAdopt
		w.phaseSpan.SetName(spans.Create + "." + metrics.PhaseAdopt)
	}
}

// done counts the create of an instance. runtime is the name that its client gave: it counts as a name only once it has
// resolved.
func (w *watched) done(i *Instance, runtime string, err error) {
	i.mu.Lock()
	source, resolved := i.ledger.Passage().Source(), i.binary.Path != ""
	i.mu.Unlock()
	if !resolved {
		runtime = ""
	}
	w.leave(err)
	w.endSpan(err)
	if err != nil {
		metrics.CreateFailed(runtime, source, w.reason(err))
		return
	}
	metrics.Created(runtime, source, time.Since(w.begin))
}

// reason puts a failed create into one of the closed list of reasons, by its error and by the phase in which it came.
func (w *watched) reason(err error) string {
	switch {
	case errdefs.IsCanceled(err), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return metrics.ReasonCanceled
	case errdefs.IsAlreadyExists(err):
		return metrics.ReasonExists
	case errors.Is(err, shimclient.ErrConnectionLost), errors.Is(err, shimproc.ErrDead):
		return metrics.ReasonShimDied
	case metrics.IsOfBundle(err):
		return metrics.ReasonBundle
	case w.phase == metrics.PhaseLaunch && errdefs.IsUnavailable(err):
		return metrics.ReasonConnect // it has started, or was there
	case w.phase == metrics.PhaseResolve && errdefs.IsInvalidArgument(err):
		return metrics.ReasonSpec
	}
	return reasonOfPhase[w.phase]
}

var reasonOfPhase = map[string]string{
	metrics.PhaseResolve: metrics.ReasonRuntime, metrics.PhaseLaunch: metrics.ReasonLaunch,
	metrics.PhaseMounts: metrics.ReasonMounts, metrics.PhaseCreate: metrics.ReasonShim,
}
