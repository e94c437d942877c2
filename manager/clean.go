// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

const (
	firstCleanPause = time.Second
	lastCleanPause  = time.Minute
	// shimDeleteTries is how often a failing `shim delete` is tried before the bundle goes without it. By then no process may be left.
	shimDeleteTries = 5
)

// cleaning is the removal of what is left of an instance.
type cleaning struct {
	// shimDelete: `shim delete` is due.
	shimDelete bool
	// orderly: the shim has deleted the task by itself, so that nothing hangs on its `delete`.
	orderly bool

	tries int // of `shim delete` that failed
}

// clean removes what is left of the instance and then the instance, trying with growing pauses until it succeeds or the manager is
// closed. Until then the id stays reserved; after a close the next start goes on.
func (i *Instance) clean(c cleaning) {
	for pause := firstCleanPause; ; pause = min(2*pause, lastCleanPause) {
		err := i.cleanOnce(i.context(), &c)
		if err == nil {
			i.m.forget(i)
			return
		}
		if i.setLeft(err) {
			log.G(i.context()).WithError(err).Errorf("cannot clean up after %s; it is tried again until it succeeds", i.kind)
		}
		if !i.m.sleep(pause) {
			return
		}
	}
}

// cleanOnce is one attempt: processes of a launch that got no task, `shim delete` where it is due, sockets nobody listens on, the
// bundle, and the mounts that were activated for it.
func (i *Instance) cleanOnce(ctx context.Context, c *cleaning) error {
	err := i.tryClean(ctx, c)
	metrics.Cleanup(err == nil)
	return err
}

func (i *Instance) tryClean(ctx context.Context, c *cleaning) error {
	if err := i.endLaunches(ctx); err != nil {
		return err
	}
	if c.shimDelete {
		if err := i.tryShimDelete(ctx, c); err != nil {
			return err
		}
	}
	return i.removeRest(ctx)
}

// endLaunches ends all processes that carry the tokens of launches that came to nothing. It must succeed before the bundle goes: the
// tokens are in it.
func (i *Instance) endLaunches(ctx context.Context) error {
	i.mu.Lock()
	tokens := i.tokens
	i.mu.Unlock()
	ctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	for _, token := range tokens {
		if err := shimclient.EndLaunch(ctx, token); err != nil && !errdefs.IsNotImplemented(err) {
			return errors.Wrap(err, "cannot end the processes of the launch")
		}
	}
	return nil
}

// tryShimDelete runs `shim delete`. What it fails with matters only while something may hang on it.
func (i *Instance) tryShimDelete(ctx context.Context, c *cleaning) error {
	_, err := i.shimDelete(ctx)
	if err == nil || errors.Is(err, errNoBinary) {
		return nil
	}
	c.tries++
	if c.orderly || c.tries >= shimDeleteTries && !i.hasProcess() && !i.initProcess().Alive() {
		log.G(ctx).WithError(err).Warn("shim's delete fails; going on without it")
		return nil
	}
	return err
}

func (i *Instance) removeRest(ctx context.Context) error {
	i.mu.Lock()
	d, launch, joined, mounted, warm := i.bundle, i.rec.Launch, i.rec.Joined, i.mounted, i.rec.Warm != ""
	i.mu.Unlock()
	if warm {
		for _, address := range i.addresses() {
			i.m.launcher.UnlinkSocket(i.namespace, i.id, address)
		}
	}
	// The last of a group removes the group's socket: that the shim was started for the first does not help one who is not there any more.
	if p := i.process(); !joined || !warm && p != nil && p.isOver() {
		ids := []string{i.id}
		if launch != nil {
			ids = append(ids, launch.Groups...)
		}
		i.m.launcher.RemoveSockets(i.namespace, ids, i.addresses()...)
	}
	if d != nil {
		i.seal()
		failpoint("clean-bundle")
		if err := i.removeBundle(d); err != nil {
			return errors.Wrap(err, "cannot remove the bundle")
		}
		failpoint("clean-removed")
	}
	if mounted {
		i.deactivate(ctx)
	}
	return nil
}

// addresses are where the instance's shim says, or said, that it listens.
func (i *Instance) addresses() []string {
	if r, err := i.bootstrap(); err == nil {
		return []string{r.Address}
	}
	if p := i.process(); p != nil {
		return []string{p.endpoint.Address}
	}
	return nil
}

// errNoBinary: there is no binary to run `delete` with, now or later.
var errNoBinary = errors.Wrap(errdefs.ErrNotFound, "the shim's binary is gone")

// shimDelete runs `shim delete` within the cleanup timeout. It succeeds once per instance; later calls do nothing.
func (i *Instance) shimDelete(ctx context.Context) (*shimclient.DeleteResult, error) {
	i.mu.Lock()
	d, done := i.bundle, i.shimDeleted
	i.mu.Unlock()
	if d == nil || done {
		return nil, nil
	}
	b, err := i.deleteBinary(ctx)
	if err != nil {
		return nil, err
	}
	if err := i.replaceBundle(ctx, d); err != nil {
		return nil, err
	}
	if err := d.Isolate(); err != nil {
		// The delete is what ends the container, so it cannot wait for this.
		log.G(ctx).WithError(err).Warn("what is mounted in volumes of the container may be unmounted on the host as well")
	}
	ctx, cancel := timeout.WithContext(context.WithoutCancel(ctx), TimeoutCleanup)
	defer cancel()
	r, err := i.m.launcher.Delete(ctx, shimclient.DeleteRequest{Binary: b, Namespace: i.namespace, ID: i.id, Bundle: d.Path})
	if errors.Is(err, shimclient.ErrDeleteReply) {
		// It has done its work, and would say the same the next time.
		log.G(ctx).WithError(err).Warn("shim has deleted and does not say what")
		r, err = nil, nil
	}
	if err != nil {
		return nil, errors.Wrapf(err, "cannot run %s delete", b.Path)
	}
	failpoint("clean-shim-delete")
	i.mu.Lock()
	i.shimDeleted = true
	i.mu.Unlock()
	return r, nil
}

// replaceBundle gives `shim delete` a bundle to run in where a tmp cleaner, or an operator, has removed the directory. The record goes
// into it, so that a daemon that dies meanwhile does not take it for a create that was cut short.
func (i *Instance) replaceBundle(ctx context.Context, d *bundle.Bundle) error {
	made, err := d.Replace()
	if err != nil || !made {
		return err
	}
	log.G(ctx).WithField("path", d.Path).Warn("the bundle's directory is gone: the shim's delete runs in an empty one")
	if err := i.persist(); err != nil {
		log.G(ctx).WithError(err).Warn("cannot write the record of a bundle that was gone")
	}
	var o runcoptions.Options
	if c := i.container(ctx); c.Runtime.Options == nil || typeurl.UnmarshalTo(c.Runtime.Options, &o) != nil {
		return nil // the defaults, or another kind of runtime
	}
	return d.WriteRuncOptions(&o)
}

// deleteBinary finds the binary: the one that started the shim, else the one that its runtime's name resolves to today, else one of the same
// file name, since runtimes that clients name by path resolve to nothing else.
func (i *Instance) deleteBinary(ctx context.Context) (shimclient.Binary, error) {
	i.mu.Lock()
	b, name := i.binary, i.rec.Runtime
	i.mu.Unlock()
	if b.Path != "" {
		if r, err := i.m.resolver.Resolve(b.Path); err == nil {
			return shimclient.Binary{Runtime: b.Runtime, Path: r.Path, File: r.File}, nil
		}
	}
	if name == "" {
		name = i.container(ctx).Runtime.Name // bundles of pods that stock containerd left do not name it
	}
	if name != "" {
		if r, err := i.m.resolver.Resolve(name); err == nil {
			return r, nil
		}
	}
	for _, path := range []string{b.Path, name} {
		if r, err := i.m.resolver.ResolveNamesake(path); err == nil {
			log.G(ctx).WithField("binary", path).Warnf("the shim's binary is gone: its delete is run by %s", r.Path)
			return shimclient.Binary{Runtime: b.Runtime, Path: r.Path, File: r.File}, nil
		}
	}
	log.G(ctx).WithField("binary", b.Path).Warn("the shim's binary is gone: its delete cannot run, removing the bundle without it")
	return shimclient.Binary{}, errNoBinary
}

// container is what the metadata store knows of the instance's container; empty where that is nothing.
func (i *Instance) container(ctx context.Context) containers.Container {
	if i.m.config.Containers == nil {
		return containers.Container{}
	}
	c, err := i.m.config.Containers.Get(ctx, i.id)
	if err != nil {
		return containers.Container{}
	}
	return c
}

// bury is what follows the proof of death: the exit is found out and told, then the deletion, and nothing is left behind.
func (i *Instance) bury() {
	ctx := i.context()
	log.G(ctx).Info("shim is dead, cleaning up after it")
	i.leaveProcess()
	if !i.waitInFlight() {
		return
	}
	if i.wasCreated() {
		if i.exit("") != nil || i.initGone() {
			i.noteOOM() // while the cgroup is there; what `shim delete` ends now is not ended for lack of memory
		}
		exit := i.findExit(ctx)
		if !i.wasShimDeleted() && i.initProcess().Alive() {
			i.killInit(ctx) // what the shim's delete would have done
		}
		i.learnDeath(exit)
		failpoint("bury-recorded")
		if i.kind == KindTask {
			i.tell()
		}
	}
	i.activated()
	i.clean(cleaning{shimDelete: true})
}

// waitInFlight waits until what the shim itself has told must have arrived and, at a start of the daemon, until somebody can listen.
func (i *Instance) waitInFlight() bool {
	return i.m.awaitTold(max(inFlight, subscribersBack-time.Since(i.m.started)))
}

func (i *Instance) wasShimDeleted() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.shimDeleted
}

func (i *Instance) wasCreated() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rec.Created
}

// findExit is the exit as already known, else as `shim delete` says, else unknown.
func (i *Instance) findExit(ctx context.Context) bundle.Exit {
	known := i.exit("")
	r, err := i.shimDelete(ctx)
	switch {
	case err != nil:
		log.G(ctx).WithError(err).Warn("cannot ask for the exit of a dead shim's container")
	case known == nil && r != nil:
		e := bundle.Exit{Pid: r.Pid, Status: r.Status, At: r.ExitedAt}
		if e.At.Unix() <= 0 {
			e.At = time.Time{} // when it was first seen stopped, or now
		}
		return e
	}
	if known != nil {
		return *known
	}
	return bundle.Exit{Pid: i.pid(), Status: exitUnknown}
}

// leaveProcess detaches the instance from its process and ends that when nobody is left.
func (i *Instance) leaveProcess() {
	if p := i.process(); p != nil && p.leave(i) {
		p.end()
	}
}
