// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// options of a create: the task's own, else the runtime's.
func options(opts runtime.CreateOpts) *anypb.Any {
	o := opts.TaskOptions
	if o == nil || o.GetValue() == nil {
		o = opts.RuntimeOptions
	}
	if o == nil {
		return nil
	}
	return typeurl.MarshalProto(o)
}

// describe fills a new instance with what is known of it before there is anything of it.
func (i *Instance) describe(facts specFacts, b shimclient.Binary) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.binary, i.groups = b, facts.groups
	i.ledger.beginLocked(b.Runtime)
}

// prepare makes the bundle of a reserved instance whose shim has none for it.
func (m *ShimManager) prepare(ctx context.Context, i *Instance, facts specFacts) error {
	return makingBundle(func() error { return m.makeBundle(ctx, i, facts) })
}

func (m *ShimManager) makeBundle(ctx context.Context, i *Instance, facts specFacts) error {
	o := bundle.CreateOptions{Spec: facts.raw, GID: facts.gid}
	d, err := i.layout.Create(i.namespace, i.id, o)
	if errdefs.IsAlreadyExists(err) {
		// The id is ours, so nobody is behind this directory: a create or a removal was cut short and could not be undone.
		if err := m.clearLeftover(ctx, i); err != nil {
			return err
		}
		d, err = i.layout.Create(i.namespace, i.id, o)
	}
	if err != nil {
		return err
	}
	i.mu.Lock()
	i.bundle = d
	path := i.binary.Path
	i.mu.Unlock()
	failpoint.Here("create-bundle")
	if path == "" {
		return nil // it joins a shim whose binary is not known, see binaryFor
	}
	return d.WriteShimBinary(path)
}

// clearLeftover removes the bundle of a dead instance that nobody has in hand. One whose shim may live stays, and the id with it; so
// does a directory that is no bundle, and one that cannot be read: what is in it may be somebody's data. Errors: AlreadyExists.
func (m *ShimManager) clearLeftover(ctx context.Context, i *Instance) error {
	old := newInstance(m, i.layout, i.kind, i.namespace, i.id, reaping)
	d, err := i.layout.Open(i.namespace, i.id)
	if err != nil {
		return err
	}
	if !d.Recognized() {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s is in the way of %s %s and is no bundle; move it away", d.Path, i.kind, i.id)
	}
	old.load(ctx, d)
	shim := old.ledger.recordedShim()
	if shim.Alive() || old.hasProcess() || shim == (shimclient.ProcessID{}) && m.serves(ctx, d) {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s %s has a bundle %s whose shim still runs; end that first", i.kind, i.id, d.Path)
	}
	log.G(ctx).WithField("path", d.Path).Warn("removing the leftover of an earlier instance")
	return old.cleanOnce(ctx, &cleaning{shimDelete: true})
}

// serves tells whether a shim may listen where a bundle says that its own does; true where what it says cannot be used.
func (m *ShimManager) serves(ctx context.Context, d *bundle.Bundle) bool {
	r, err := d.ReadBootstrap()
	if err != nil {
		return !errdefs.IsNotFound(err)
	}
	ep, err := shimclient.EndpointOf(r)
	if err != nil {
		return true
	}
	return shimproc.Probe(ctx, ep) != shimclient.Refused
}

// launch starts a shim for the instance, or finds that its `start` has named a process that is known already. Launches into one group
// go one after the other: `start` names a process that an earlier launch into the group has made, and that one may still fail and end
// what it made.
func (m *ShimManager) launch(ctx context.Context, i *Instance, opts *anypb.Any) (*bootapi.BootstrapResult, error) {
	if len(i.groups) > 0 {
		unlock, err := m.starts.lock(ctx, i.namespace+"/"+i.groups[0])
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	r, p, err := m.start(ctx, i, opts)
	if errors.Is(err, shimproc.ErrClosing) || errors.Is(err, shimproc.ErrDead) {
		// The group's process took its leave between the answer of `start` and now: wait for what becomes of it, then start again.
		if err := p.AwaitClosed(ctx); err != nil {
			return nil, err
		}
		r, _, err = m.start(ctx, i, opts)
	}
	return r, err
}

func (m *ShimManager) start(ctx context.Context, i *Instance, opts *anypb.Any) (*bootapi.BootstrapResult, *shimproc.Process, error) {
	i.mu.Lock()
	token := i.ledger.launchingLocked(i.binary.Path, i.groups)
	b, d := i.binary, i.bundle
	i.mu.Unlock()
	// The trace of the launch must be on disk before there is anything to find by it.
	if err := i.ledger.persist(); err != nil {
		return nil, nil, err
	}
	failpoint.Here("launch-recorded")
	logs, err := shimclient.OpenLog(d.LogPath(), log.Fields{"id": i.id, "namespace": i.namespace})
	if err != nil {
		return nil, nil, errors.Wrap(err, "cannot open the shim's log")
	}
	r, err := m.launcher.Start(ctx, shimclient.StartRequest{
		Binary: b, Protocol: m.config.runtime(b).StartProtocol, Namespace: i.namespace, ID: i.id, Bundle: d.Path, Token: token, Options: opts,
		SocketIDs: i.groups, Addresses: i.addresses,
	})
	if err != nil {
		_ = logs.Close()
		return nil, nil, errors.Wrap(err, "cannot start the shim")
	}
	failpoint.Here("launch-started")
	p, created, err := m.adopt(ctx, i, r, shimproc.Origin{Launched: true, Anew: m.answeredAnew(ctx, r)})
	if !created {
		_ = logs.Close()
	} else if p != nil {
		p.SetLog(logs)
	}
	return r, p, err
}

// answeredAnew is startedAnew for an answer that may be unusable.
func (m *ShimManager) answeredAnew(ctx context.Context, r *bootapi.BootstrapResult) bool {
	ep, err := shimclient.EndpointOf(r)
	return err == nil && m.procs.StartedAnew(ctx, ep.Followed())
}

// adopt takes a process that answered at an endpoint for the instance's: attaches, connects, verifies its pid, writes the records.
func (m *ShimManager) adopt(ctx context.Context, i *Instance, r *bootapi.BootstrapResult, from shimproc.Origin) (*shimproc.Process, bool, error) {
	ep, err := shimclient.EndpointOf(r)
	if err != nil {
		return nil, false, errors.Wrap(err, "cannot use the shim's answer")
	}
	if to := ep.Followed(); to != ep {
		// The name may go before this instance does.
		ep, r = to, proto.CloneOf(r)
		r.Address = to.Address
	}
	i.mu.Lock()
	d := i.bundle
	i.mu.Unlock()
	// Others may join the process from the moment that it is attached, and after a crash they must not be alone in knowing of it.
	if err := d.WriteBootstrap(r); err != nil {
		return nil, false, err
	}
	failpoint.Here("launch-bootstrap")
	p, created, err := m.procs.Attach(behind{i}, ep, from)
	if err != nil {
		return p, created, err
	}
	dialled := time.Now()
	end := besideStep(ctx, spanCreate+"."+metrics.PhaseDial)
	l, err := p.Use(ctx, shimproc.Once)
	end(err)
	if err != nil {
		return p, created, errors.Wrapf(err, "cannot connect to the shim at %s", ep)
	}
	metrics.Phase(metrics.PhaseDial, dialled)
	launched := p.IsLaunched()
	i.recordEndpoint(ep)
	i.mu.Lock()
	i.ledger.attachedLocked(created, launched)
	b, token := i.binary, i.ledger.passageLocked().token()
	i.mu.Unlock()
	if created && token != "" {
		p.Verify(ctx, l, b, token)
		i.ledger.recordAnswer(p.AnsweredNow())
	}
	i.ledger.recordShim(p.Verified())
	return p, created, i.ledger.persist()
}

// shimFor finds or starts the process that is to serve the instance: the sandbox's, one of the pool, or a new one, and makes the bundle.
func (m *ShimManager) shimFor(ctx context.Context, i *Instance, facts specFacts, opts runtime.CreateOpts) (*bootapi.BootstrapResult, error) {
	r, err := m.sandboxShim(ctx, i, opts)
	if err != nil {
		return nil, err
	}
	if r == nil || r.Version < sandboxVersion {
		if spec, ok := m.pool.specFor(i, facts, i.binary, options(opts)); ok {
			return m.launchWarm(ctx, i, facts, spec)
		}
		if m.config.pool(i.binary).Warm > 0 {
			metrics.WarmRequest(i.binary.Runtime, "ineligible")
		}
		return m.launchAlone(ctx, i, facts, options(opts))
	}
	if err := m.prepare(ctx, i, facts); err != nil {
		return nil, err
	}
	if err := i.recordJoin(opts.SandboxID, r); err != nil {
		return nil, err
	}
	_, _, err = m.adopt(ctx, i, r, shimproc.Origin{Group: opts.SandboxID})
	return r, errors.Wrapf(err, "cannot join the shim of sandbox %s", opts.SandboxID)
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
func (m *ShimManager) launchAlone(ctx context.Context, i *Instance, facts specFacts, opts *anypb.Any) (*bootapi.BootstrapResult, error) {
	if err := m.prepare(ctx, i, facts); err != nil {
		return nil, err
	}
	return m.launch(ctx, i, opts)
}

// bootstrap returns how to reach the instance's shim: what its bundle says or, if that is lost, what our record does.
func (i *Instance) bootstrap() (*bootapi.BootstrapResult, error) {
	i.mu.Lock()
	d, known := i.bundle, i.ledger.endpointLocked()
	i.mu.Unlock()
	if d == nil {
		return nil, errors.Wrapf(errdefs.ErrUnavailable, "%s %s is still being started", i.kind, i.id)
	}
	r, err := d.ReadBootstrap()
	if known == nil || err == nil && r.Address != known.Address {
		return r, err
	}
	// An address that a shim has left by itself says neither version nor protocol.
	return &bootapi.BootstrapResult{
		Version: int32(known.Version), Protocol: known.Protocol, Address: known.Address, Extensions: r.GetExtensions(),
	}, nil
}

// recordEndpoint keeps how to reach the shim in the record too.
func (i *Instance) recordEndpoint(ep shimclient.Endpoint) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ledger.recordEndpointLocked(ep)
	i.version = ep.Version
}
