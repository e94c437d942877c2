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

// sandboxShim is the shim of a sandbox that a container is to be served by.
type sandboxShim struct {
	sandbox string
	box     *Instance // that; nil where only another's sandboxer knows it
	reply   *bootapi.BootstrapResult
}

// sandboxShimFor is the shim of the sandbox that opts names; nil when there is none to join: no sandbox named, one from
// before containerd had a sandbox store, or one with a shim that does not serve it by itself, whose containers are
// grouped by the shim's own `start`.
func (m *ShimManager) sandboxShimFor(ctx context.Context, i *Instance, opts runtime.CreateOpts) (*sandboxShim, error) {
	if opts.SandboxID == "" {
		return nil, nil
	}
	if _, err := m.config.Sandboxes.Get(ctx, opts.SandboxID); errdefs.IsNotFound(err) {
		log.G(ctx).WithField("sandbox", opts.SandboxID).Debug("sandbox is not in the store, starting a shim of its own")
		return nil, nil
	} else if err != nil {
		return nil, errors.Wrapf(err, "cannot look up sandbox %s", opts.SandboxID)
	}
	to := &sandboxShim{sandbox: opts.SandboxID, box: m.find(i.namespace, opts.SandboxID)}
	var err error
	if to.reply, err = to.bootstrap(opts.Address, opts.Version); err != nil || to.reply.Version < sandboxVersion {
		return nil, err
	}
	return to, nil
}

// bootstrap says how to reach the shim: at the address that the sandbox's controller hands over, or at its own.
func (s *sandboxShim) bootstrap(address string, version uint32) (*bootapi.BootstrapResult, error) {
	if address == "" {
		if s.box == nil {
			return nil, errors.Wrapf(errdefs.ErrNotFound, "cannot find the shim of sandbox %s", s.sandbox)
		}
		return s.box.bootstrap()
	}
	ep, err := shimclient.ParseEndpoint(address, version)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot use the address of sandbox %s", s.sandbox)
	}
	r := &bootapi.BootstrapResult{Version: int32(ep.Version), Protocol: ep.Protocol, Address: ep.Address}
	if s.box != nil {
		// The sandbox's controller hands over only an address; what the shim advertised at its start is in the bundle.
		if own, err := s.box.bootstrap(); err == nil {
			r.Extensions = own.Extensions
		}
	}
	return r, nil
}

// binaryFor finds the binary of a create's runtime. A container that joins the shim of a sandbox starts none, so that a
// binary that is gone does not keep it from being created: then Path is where the binary was, as far as that is known.
func (m *ShimManager) binaryFor(ctx context.Context, runtime string, to *sandboxShim) (shimclient.Binary, error) {
	b, err := m.resolve(ctx, runtime)
	if !errdefs.IsNotFound(err) || to == nil {
		return b, err
	}
	log.G(ctx).WithError(err).WithField("sandbox", to.sandbox).
		Warn("the shim's binary is gone; joining the sandbox's shim without it")
	path := filepath.Clean(runtime)
	if !filepath.IsAbs(path) {
		path = ""
		if to.box != nil {
			to.box.read()
			path = to.box.startedFrom().Path
		}
	}
	return shimclient.Binary{Runtime: runtime, Path: path}, nil
}

// shimFor finds or starts the process that is to serve the instance: the sandbox's, one of the pool, or a new one, and
// makes the bundle.
func (m *ShimManager) shimFor(
	ctx context.Context, i *Instance, to *sandboxShim,
) (*bootapi.BootstrapResult, error) {
	if to == nil {
		return m.ownShim(ctx, i)
	}
	if err := m.prepare(ctx, i); err != nil {
		return nil, err
	}
	if err := i.recordJoin(to); err != nil {
		return nil, err
	}
	_, err := reachShim(ctx, to.reply, &taskLaunch{m: m, i: i, from: shimproc.Origin{Group: to.sandbox}}, nil)
	return to.reply, errors.Wrapf(err, "cannot join the shim of sandbox %s", to.sandbox)
}

// recordJoin notes that another's shim is to serve the instance. The record first: a bundle with a sandbox or a
// bootstrap and without a record is one of stock containerd, of a task that was created.
func (i *Instance) recordJoin(to *sandboxShim) error {
	if ep, err := shimclient.EndpointOf(to.reply); err == nil {
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
	return d.WriteSandbox(to.sandbox)
}

// ownShim gives the instance a shim of the pool, or a new one.
func (m *ShimManager) ownShim(
	ctx context.Context, i *Instance,
) (*bootapi.BootstrapResult, error) {
	b := i.startedFrom()
	opts, err := m.config.startOptions(b, i.request.options)
	if err != nil {
		return nil, err
	}
	if spec, ok := m.pool.specFor(i, b, opts); ok {
		r, err := m.launchWarm(ctx, i, spec)
		if !errors.Is(err, errAlone) {
			return r, err
		}
	} else if m.config.pool(b).Warm > 0 {
		metrics.WarmRequest(b.Runtime, "ineligible")
	}
	return m.launchAlone(ctx, i, opts)
}

// launchAlone makes the bundle and starts a shim in it.
func (m *ShimManager) launchAlone(
	ctx context.Context, i *Instance, opts *anypb.Any,
) (*bootapi.BootstrapResult, error) {
	if err := m.prepare(ctx, i); err != nil {
		return nil, err
	}
	return m.launch(ctx, i, opts)
}

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
	p, err := reachShim(ctx, r, of, logs)
	return r, p, err
}

// reachShim connects to the shim that an answer names, one that was just launched or one to join. logs is drained for
// as long as the process is known, where that is a new one, and closed otherwise; nil where nothing was launched.
func reachShim(
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
