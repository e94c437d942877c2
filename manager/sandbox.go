// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/spans"
	"github.com/shimyard/shimyard/shimclient"
)

// SandboxController is the "shim" sandboxer: each sandbox is a shim process that serves the Sandbox API. Safe for
// concurrent use.
type SandboxController struct {
	shims  *ShimManager
	layout bundle.Layout
}

var _ sandbox.Controller = (*SandboxController)(nil)

// NewSandboxController makes a controller.
func NewSandboxController(shims *ShimManager) (*SandboxController, error) {
	c := &SandboxController{shims: shims, layout: shims.config.Boxes.layout()}
	if err := c.layout.Init(0o700); err != nil {
		return nil, err
	}
	return c, nil
}

// Create launches the sandbox's shim and initializes the sandbox in it. When it fails nothing of it is left.
func (c *SandboxController) Create(ctx context.Context, info sandbox.Sandbox, opts ...sandbox.CreateOpt) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	if err := bundle.ValidateID(ns, info.ID); err != nil {
		return err
	}
	var o sandbox.CreateOptions
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return errors.Wrapf(err, "cannot create sandbox %s", info.ID)
		}
	}
	i := newInstance(c.shims, c.layout, life.Sandbox, ns, info.ID, life.Launching)
	if err := c.shims.reserve(ctx, i); err != nil {
		return err
	}
	sctx, end := i.startSpan(ctx, spans.Sandbox+"Create")
	err = c.build(sctx, i, info, &o)
	end(err)
	if err != nil {
		c.shims.abandon(ctx, i)
		return errors.Wrapf(err, "cannot create sandbox %s", info.ID)
	}
	return nil
}

func (c *SandboxController) build(
	ctx context.Context, i *Instance, info sandbox.Sandbox, o *sandbox.CreateOptions,
) error {
	r, err := readRequest(runtime.CreateOpts{Spec: info.Spec, RuntimeOptions: info.Runtime.Options})
	if err != nil {
		return err
	}
	b, err := c.shims.resolve(ctx, info.Runtime.Name)
	if err != nil {
		return err
	}
	defer i.describe(r, b)()
	opts, err := c.shims.config.startOptions(b, r.options)
	if err != nil {
		return err
	}
	if _, err := c.shims.launchAlone(ctx, i, opts); err != nil {
		return err
	}
	req := &sandboxapi.CreateSandboxRequest{
		SandboxID: i.id, BundlePath: i.home().Path, Rootfs: mount.ToProto(o.Rootfs),
		NetnsPath: o.NetNSPath, Annotations: o.Annotations,
	}
	if o.Options != nil {
		req.Options = typeurl.MarshalProto(o.Options)
	}
	err = i.detached(ctx, func(ctx context.Context) error {
		return i.box(ctx, shimproc.Forced, func(ctx context.Context, s *shimclient.Sandbox) error {
			return s.Create(ctx, req)
		})
	})
	if err != nil {
		return err
	}
	i.onCreated(0, runtime.IO{})
	i.ledger.Save()
	i.cleanUpIfDead()
	return nil
}

// call finds a sandbox that is restored or running and calls its shim.
func (c *SandboxController) call(
	ctx context.Context, name, id string, mode shimproc.Mode, f func(context.Context, *shimclient.Sandbox) error,
) (*Instance, error) {
	i, err := c.get(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := i.settled(ctx, mode); err != nil {
		return nil, err
	}
	if mode == shimproc.Repeatable { // asks, and changes nothing
		return i, i.box(ctx, mode, f)
	}
	ctx, end := i.startSpan(ctx, spans.Sandbox+name)
	err = i.box(ctx, mode, f)
	end(err)
	return i, err
}

func (c *SandboxController) get(ctx context.Context, id string) (*Instance, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	return c.shims.get(ns, id, life.Sandbox)
}

// Start starts a created sandbox. One that cannot be started is ended, as containerd's callers expect.
func (c *SandboxController) Start(ctx context.Context, id string) (sandbox.ControllerInstance, error) {
	var r *sandboxapi.StartSandboxResponse
	i, err := c.call(ctx, "Start", id, shimproc.Once, func(ctx context.Context, s *shimclient.Sandbox) (err error) {
		r, err = s.Start(ctx, &sandboxapi.StartSandboxRequest{SandboxID: id})
		return err
	})
	if err != nil {
		if i != nil && isRefusal(err) {
			c.end(ctx, i)
		}
		return sandbox.ControllerInstance{}, errors.Wrapf(err, "cannot start sandbox %s", id)
	}
	i.learnPid(r.GetPid())
	i.ledger.Save()
	address, version := i.endpoint()
	return sandbox.ControllerInstance{
		SandboxID: id, Pid: r.GetPid(), Address: address, Version: version,
		CreatedAt: r.GetCreatedAt().AsTime(), Spec: r.GetSpec(),
	}, nil
}

// isRefusal tells an answer of the shim's from the lack of one: only after an answer is it certain that the sandbox
// does not run.
func isRefusal(err error) bool {
	return !errdefs.IsUnavailable(err) && !errdefs.IsDeadlineExceeded(err) && !errdefs.IsCanceled(err) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// end removes a sandbox that did not start.
func (c *SandboxController) end(ctx context.Context, i *Instance) {
	if before, _ := i.onDelete(false); before != life.Running {
		return
	}
	i.onDeleted()
	done := c.shims.spawn(i.undo)
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Platform of the sandbox's containers.
func (c *SandboxController) Platform(ctx context.Context, id string) (imagespec.Platform, error) {
	var r *sandboxapi.PlatformResponse
	ask := func(ctx context.Context, s *shimclient.Sandbox) (err error) {
		r, err = s.Platform(ctx, &sandboxapi.PlatformRequest{SandboxID: id})
		return err
	}
	if _, err := c.call(ctx, "Platform", id, shimproc.Repeatable, ask); err != nil {
		return imagespec.Platform{}, errors.Wrapf(err, "cannot get the platform of sandbox %s", id)
	}
	p := r.GetPlatform()
	return imagespec.Platform{OS: p.GetOS(), Architecture: p.GetArchitecture(), Variant: p.GetVariant()}, nil
}

// Stop stops the sandbox. One that is unknown, or whose shim is gone, is stopped. Where the shim leaves that
// unanswered, or cannot be told, the sandbox's process is ended without it, as with a task's SIGKILL.
func (c *SandboxController) Stop(ctx context.Context, id string, opts ...sandbox.StopOpt) error {
	var o sandbox.StopOptions
	for _, opt := range opts {
		opt(&o)
	}
	req := &sandboxapi.StopSandboxRequest{SandboxID: id}
	if o.Timeout != nil {
		req.TimeoutSecs = uint32(max(0, o.Timeout.Round(time.Second)) / time.Second)
	}
	i, err := c.call(ctx, "Stop", id, shimproc.Forced, func(ctx context.Context, s *shimclient.Sandbox) error {
		return s.Stop(ctx, req)
	})
	if i != nil && i.ignores(err) && i.killInit(ctx) {
		return nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return errors.Wrapf(err, "cannot stop sandbox %s", id)
	}
	return nil
}

// Shutdown ends the sandbox and its shim and removes what they leave. NotFound for an unknown one; when it fails it may
// be tried again.
func (c *SandboxController) Shutdown(ctx context.Context, id string) error {
	i, err := c.get(ctx, id)
	if err != nil {
		return err
	}
	mine, err := i.claimDelete(ctx)
	if err != nil || !mine {
		return err
	}
	ctx, end := i.startSpan(ctx, spans.Sandbox+"Shutdown")
	_, err = detach(ctx, c.shims, func(ctx context.Context) (struct{}, error) { return struct{}{}, i.shutdownBox(ctx) })
	end(err)
	return errors.Wrapf(err, "cannot shut down sandbox %s", id)
}

// shutdownBox is the orderly end of a sandbox that the caller has claimed. The shim ends by itself after it has
// answered; other instances that it serves keep it until they go.
func (i *Instance) shutdownBox(ctx context.Context) error {
	l, _ := i.link()
	bctx, cancel := i.deleteContext(ctx)
	err := i.box(bctx, shimproc.Forced, func(ctx context.Context, s *shimclient.Sandbox) error {
		return s.Shutdown(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: i.id})
	})
	cancel()
	if i.unanswered(err) && i.endSilentShim(ctx) {
		err = shimproc.ErrDead
	}
	p := i.process()
	var lingering *shimproc.Leaving
	switch {
	case i.processDead():
	case err == nil:
		if p.Leave(behind{i}) {
			wctx, cancel := timeout.WithContext(ctx, shimproc.TimeoutShutdown)
			lingering = i.awaitShutdown(wctx, p.SaidYes(l))
			cancel()
			if lingering == nil {
				p.End()
			}
		}
	case errdefs.IsNotFound(err):
		var rerr error
		if lingering, rerr = i.releaseProcess(ctx, p, false); rerr != nil {
			i.takeDeleteBack()
			return rerr
		}
	default:
		i.takeDeleteBack()
		return err
	}
	i.ledger.LearnExit(bundle.Exit{At: time.Now().UTC()})
	i.finishReleased(ctx, lingering, i.cleaningAfter(err == nil))
	return nil
}

// Wait blocks until the sandbox has exited. Like a task's Wait it outlasts stalls, lost connections, restores and the
// daemon's stop.
func (c *SandboxController) Wait(ctx context.Context, id string) (sandbox.ExitStatus, error) {
	i, err := c.get(ctx, id)
	if err != nil {
		return sandbox.ExitStatus{}, err
	}
	exit, err := i.waitFor(ctx, "", func(ctx context.Context, l *shimproc.Link) (*bundle.Exit, error) {
		r, err := l.Conn.Sandbox().Wait(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: id})
		if err != nil {
			return nil, err
		}
		return &bundle.Exit{Status: r.GetExitStatus(), At: ledger.TimeOf(r.GetExitedAt())}, nil
	})
	if err != nil {
		return sandbox.ExitStatus{}, errors.Wrapf(err, "cannot wait for sandbox %s", id)
	}
	return sandbox.ExitStatus{ExitStatus: exit.Status, ExitedAt: exit.Timestamp}, nil
}

// Status of the sandbox. An unknown one has exited just now.
func (c *SandboxController) Status(ctx context.Context, id string, verbose bool) (sandbox.ControllerStatus, error) {
	var r *sandboxapi.SandboxStatusResponse
	i, err := c.call(ctx, "Status", id, shimproc.Repeatable,
		func(ctx context.Context, s *shimclient.Sandbox) (err error) {
			r, err = s.Status(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: id, Verbose: verbose})
			return err
		})
	if i == nil && errdefs.IsNotFound(err) {
		return sandbox.ControllerStatus{SandboxID: id, ExitedAt: time.Now()}, nil
	}
	if err != nil {
		return sandbox.ControllerStatus{}, errors.Wrapf(err, "cannot get the status of sandbox %s", id)
	}
	address, version := i.endpoint()
	return sandbox.ControllerStatus{
		SandboxID: r.GetSandboxID(), Pid: r.GetPid(), State: r.GetState(), Info: r.GetInfo(),
		CreatedAt: r.GetCreatedAt().AsTime(), ExitedAt: r.GetExitedAt().AsTime(), Extra: r.GetExtra(),
		Address: address, Version: version,
	}, nil
}

// Metrics of the sandbox.
func (c *SandboxController) Metrics(ctx context.Context, id string) (*types.Metric, error) {
	var r *sandboxapi.SandboxMetricsResponse
	ask := func(ctx context.Context, s *shimclient.Sandbox) (err error) {
		r, err = s.Metrics(ctx, &sandboxapi.SandboxMetricsRequest{SandboxID: id})
		return err
	}
	if _, err := c.call(ctx, "Metrics", id, shimproc.Repeatable, ask); err != nil {
		return nil, errors.Wrapf(err, "cannot get the metrics of sandbox %s", id)
	}
	return r.GetMetrics(), nil
}

// Update changes parts of the sandbox. Shims need not implement it: NotImplemented is for the caller to tolerate.
func (c *SandboxController) Update(ctx context.Context, id string, sb sandbox.Sandbox, fields ...string) error {
	req := &sandboxapi.UpdateSandboxRequest{SandboxID: id, Sandbox: sandbox.ToProto(&sb), Fields: fields}
	_, err := c.call(ctx, "Update", id, shimproc.Once, func(ctx context.Context, s *shimclient.Sandbox) error {
		return s.Update(ctx, req)
	})
	return errors.Wrapf(err, "cannot update sandbox %s", id)
}
