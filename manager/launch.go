// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"path/filepath"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/spans"
	"github.com/shimyard/shimyard/shimclient"
)

// launch starts a shim for the instance, or finds that its `start` has named a process that is known already. Launches
// into one group go one after the other: `start` names a process that an earlier launch into the group has made, and
// that one may still fail and end what it made.
func (m *ShimManager) launch(ctx context.Context, i *Instance, opts *anypb.Any) (*bootapi.BootstrapResult, error) {
	if groups := i.socketIDs(); len(groups) > 0 {
		unlock, err := m.starts.Lock(ctx, i.namespace+"/"+groups[0])
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	start := func() (*bootapi.BootstrapResult, *shimproc.Process, error) {
		return m.start(ctx, &taskLaunch{m: m, i: i, opts: opts, from: shimproc.Origin{Launched: true}})
	}
	r, p, err := start()
	if errors.Is(err, shimproc.ErrClosing) || errors.Is(err, shimproc.ErrDead) {
		// The group's process took its leave between the answer of `start` and now: wait for what becomes of it, then
		// start again.
		if err := p.AwaitClosed(ctx); err != nil {
			return nil, err
		}
		r, _, err = start()
	}
	return r, err
}

// launchSteps are what differs between a launch for an instance, which has its bundle, and one for a directory that
// waits for its container. Each step leaves on disk what the next daemon needs should this one die after it.
type launchSteps interface {
	// record writes the trace of the launch, by which all that it starts can be found. It returns what `start` is to be
	// asked, and the log that the shim is to write to.
	record() (shimclient.StartRequest, string, error)
	// started: `start` has answered.
	started(r *bootapi.BootstrapResult)
	// attach writes how to reach the shim and makes its process known. created: it was not known before. With an error
	// of the process's, that is returned too.
	attach(
		ctx context.Context, ep shimclient.Endpoint, r *bootapi.BootstrapResult,
	) (p *shimproc.Process, created bool, err error)
	// dial waits for the connection.
	dial(ctx context.Context, p *shimproc.Process) (*shimproc.Link, error)
	// connected verifies the shim's pid, and writes what is known of the shim then.
	connected(ctx context.Context, p *shimproc.Process, l *shimproc.Link, created bool) error
}

// start launches a shim and connects to it. What fails half way is for the caller to undo; the process is returned
// where there is one.
func (m *ShimManager) start(ctx context.Context, of launchSteps) (*bootapi.BootstrapResult, *shimproc.Process, error) {
	// The trace of the launch must be on disk before there is anything to find by it.
	req, path, err := of.record()
	if err != nil {
		return nil, nil, err
	}
	logs, err := shimclient.OpenLog(path, log.Fields{"id": req.ID, "namespace": req.Namespace})
	if err != nil {
		return nil, nil, errors.Wrap(err, "cannot open the shim's log")
	}
	r, err := m.launcher.Start(ctx, req)
	if err != nil {
		_ = logs.Close()
		return nil, nil, errors.Wrap(err, "cannot start the shim")
	}
	of.started(r)
	p, err := reach(ctx, r, of, logs)
	return r, p, err
}

// reach connects to the shim that an answer names, one that was just launched or one to join. logs is drained for as
// long as the process is known, where that is a new one, and closed otherwise; nil where nothing was launched.
func reach(
	ctx context.Context, r *bootapi.BootstrapResult, of launchSteps, logs *shimclient.Log,
) (*shimproc.Process, error) {
	ep, err := shimclient.EndpointOf(r)
	var p *shimproc.Process
	created := false
	if err != nil {
		err = errors.Wrap(err, "cannot use the shim's answer")
	} else {
		p, created, err = of.attach(ctx, ep, r)
	}
	switch {
	case logs == nil:
	case err == nil && created:
		p.SetLog(logs)
	default:
		_ = logs.Close()
	}
	if err != nil {
		return p, err
	}
	l, err := of.dial(ctx, p)
	if err != nil {
		return p, errors.Wrapf(err, "cannot connect to the shim at %s", p.Endpoint)
	}
	return p, of.connected(ctx, p, l, created)
}

// taskLaunch is the launch of an instance, or its joining of a shim that runs.
type taskLaunch struct {
	m    *ShimManager
	i    *Instance
	opts *anypb.Any
	from shimproc.Origin
	ep   shimclient.Endpoint // set by attach
}

func (t *taskLaunch) record() (shimclient.StartRequest, string, error) {
	i := t.i
	i.mu.Lock()
	token := i.ledger.Launching(i.binary.Path, i.groups)
	b, d, groups := i.binary, i.bundle, i.groups
	i.mu.Unlock()
	if err := i.ledger.Persist(); err != nil {
		return shimclient.StartRequest{}, "", err
	}
	failpoint.Here("launch-recorded")
	return shimclient.StartRequest{
		Binary: b, Protocol: t.m.config.runtime(b).StartProtocol, Namespace: i.namespace, ID: i.id, Bundle: d.Path,
		Token: token, Options: t.opts, SocketIDs: groups, Addresses: i.addresses,
	}, d.LogPath(), nil
}

func (t *taskLaunch) started(*bootapi.BootstrapResult) { failpoint.Here("launch-started") }

func (t *taskLaunch) attach(
	ctx context.Context, ep shimclient.Endpoint, r *bootapi.BootstrapResult,
) (*shimproc.Process, bool, error) {
	if to := ep.Followed(); to != ep {
		// The name may go before this instance does.
		ep, r = to, proto.CloneOf(r)
		r.Address = to.Address
	}
	t.ep = ep
	if t.from.Launched {
		var err error
		if t.from.Anew, err = t.m.procs.StartedAnew(ctx, ep); err != nil {
			return nil, false, err
		}
	}
	d := t.i.home()
	// Others may join the process from the moment that it is attached, and after a crash they must not be alone in
	// knowing of it.
	if err := d.WriteBootstrap(r); err != nil {
		return nil, false, err
	}
	failpoint.Here("launch-bootstrap")
	return t.m.procs.Attach(behind{t.i}, ep, t.from)
}

func (t *taskLaunch) dial(ctx context.Context, p *shimproc.Process) (*shimproc.Link, error) {
	dialled := time.Now()
	end := spans.Beside(ctx, spans.Create+"."+metrics.PhaseDial)
	l, err := p.Use(ctx, shimproc.Once)
	end(err)
	if err == nil {
		metrics.Phase(metrics.PhaseDial, dialled)
	}
	return l, err
}

func (t *taskLaunch) connected(ctx context.Context, p *shimproc.Process, l *shimproc.Link, created bool) error {
	i, launched := t.i, p.IsLaunched()
	i.recordEndpoint(t.ep)
	i.mu.Lock()
	i.ledger.Attached(created, launched)
	b, token := i.binary, i.ledger.Passage().Token()
	i.mu.Unlock()
	if created && token != "" {
		p.Verify(ctx, l, b, token)
		i.ledger.RecordAnswer(p.AnsweredNow())
	}
	i.ledger.RecordShim(p.Verified())
	return i.ledger.Persist()
}

// shimFor finds or starts the process that is to serve the instance: the sandbox's, one of the pool, or a new one, and
// makes the bundle.
func (m *ShimManager) shimFor(
	ctx context.Context, i *Instance, facts specFacts, opts runtime.CreateOpts,
) (*bootapi.BootstrapResult, error) {
	r, err := m.sandboxShim(ctx, i, opts)
	if err != nil {
		return nil, err
	}
	if r == nil || r.Version < sandboxVersion {
		return m.ownShim(ctx, i, facts, options(opts))
	}
	if err := m.prepare(ctx, i, facts); err != nil {
		return nil, err
	}
	if err := i.recordJoin(opts.SandboxID, r); err != nil {
		return nil, err
	}
	_, err = reach(ctx, r, &taskLaunch{m: m, i: i, from: shimproc.Origin{Group: opts.SandboxID}}, nil)
	return r, errors.Wrapf(err, "cannot join the shim of sandbox %s", opts.SandboxID)
}

// ownShim gives the instance a shim of the pool, or a new one.
func (m *ShimManager) ownShim(
	ctx context.Context, i *Instance, facts specFacts, given *anypb.Any,
) (*bootapi.BootstrapResult, error) {
	b := i.startedFrom()
	opts, err := m.config.startOptions(b, given)
	if err != nil {
		return nil, err
	}
	if spec, ok := m.pool.specFor(i, facts, b, opts); ok {
		return m.launchWarm(ctx, i, facts, spec)
	}
	if m.config.pool(b).Warm > 0 {
		metrics.WarmRequest(b.Runtime, "ineligible")
	}
	return m.launchAlone(ctx, i, facts, opts)
}

// resolve finds the binary of a runtime that is to be started or asked for a client, if it may be.
func (m *ShimManager) resolve(ctx context.Context, runtime string) (shimclient.Binary, error) {
	b, err := m.resolver.Resolve(runtime)
	if err != nil {
		return b, err
	}
	return b, m.policy.Admit(ctx, b)
}

// launchAlone makes the bundle and starts a shim in it.
func (m *ShimManager) launchAlone(
	ctx context.Context, i *Instance, facts specFacts, opts *anypb.Any,
) (*bootapi.BootstrapResult, error) {
	if err := m.prepare(ctx, i, facts); err != nil {
		return nil, err
	}
	return m.launch(ctx, i, opts)
}

// sandboxVersion is the first version of the Task API whose shims serve a whole sandbox by themselves. Older ones want
// `start` for each container, even where a group shares one process.
const sandboxVersion = 3

// recordJoin notes that another's shim is to serve the instance. The record first: a bundle with a sandbox or a
// bootstrap and without a record is one of stock containerd, of a task that was created.
func (i *Instance) recordJoin(sandbox string, r *bootapi.BootstrapResult) error {
	if ep, err := shimclient.EndpointOf(r); err == nil {
		if p := i.m.procs.At(ep.Followed()); p != nil {
			i.ledger.RecordShim(p.Verified())
		}
	}
	i.mu.Lock()
	i.ledger.Join()
	d := i.bundle
	i.mu.Unlock()
	if err := i.ledger.Persist(); err != nil {
		return err
	}
	failpoint.Here("join-recorded")
	return d.WriteSandbox(sandbox)
}

// sandboxShim returns how to reach the shim of the sandbox that opts names; nil when there is none to join: no sandbox
// named, or one from before containerd had a sandbox store, whose containers are grouped by the shim's own `start`.
func (m *ShimManager) sandboxShim(
	ctx context.Context, i *Instance, opts runtime.CreateOpts,
) (*bootapi.BootstrapResult, error) {
	if opts.SandboxID == "" {
		return nil, nil
	}
	if _, err := m.config.Sandboxes.Get(ctx, opts.SandboxID); errdefs.IsNotFound(err) {
		log.G(ctx).WithField("sandbox", opts.SandboxID).Debug("sandbox is not in the store, starting a shim of its own")
		return nil, nil
	} else if err != nil {
		return nil, errors.Wrapf(err, "cannot look up sandbox %s", opts.SandboxID)
	}
	box := m.find(i.namespace, opts.SandboxID)
	if opts.Address == "" {
		if box == nil {
			return nil, errors.Wrapf(errdefs.ErrNotFound, "cannot find the shim of sandbox %s", opts.SandboxID)
		}
		return box.bootstrap()
	}
	ep, err := shimclient.ParseEndpoint(opts.Address, opts.Version)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot use the address of sandbox %s", opts.SandboxID)
	}
	r := &bootapi.BootstrapResult{Version: int32(ep.Version), Protocol: ep.Protocol, Address: ep.Address}
	if box != nil {
		// The sandbox's controller hands over only an address; what the shim advertised at its start is in the bundle.
		if own, err := box.bootstrap(); err == nil {
			r.Extensions = own.Extensions
		}
	}
	return r, nil
}

// binaryFor finds the binary of a create's runtime. A container that joins the shim of a sandbox starts none, so that a
// binary that is gone does not keep it from being created: then Path is where the binary was, as far as that is known.
func (m *ShimManager) binaryFor(ctx context.Context, i *Instance, opts runtime.CreateOpts) (shimclient.Binary, error) {
	b, err := m.resolve(ctx, opts.Runtime)
	if !errdefs.IsNotFound(err) {
		return b, err
	}
	r, jerr := m.sandboxShim(ctx, i, opts)
	if jerr != nil || r == nil || r.Version < sandboxVersion {
		return b, err
	}
	log.G(ctx).WithError(err).WithField("sandbox", opts.SandboxID).
		Warn("the shim's binary is gone; joining the sandbox's shim without it")
	path := filepath.Clean(opts.Runtime)
	if !filepath.IsAbs(path) {
		path = m.binaryPath(i.namespace, opts.SandboxID)
	}
	return shimclient.Binary{Runtime: opts.Runtime, Path: path}, nil
}

// binaryPath is where the binary was that started the shim of an id; "" when that is not known.
func (m *ShimManager) binaryPath(namespace, id string) string {
	i := m.find(namespace, id)
	if i == nil {
		return ""
	}
	i.read()
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.binary.Path
}
