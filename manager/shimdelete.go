// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"path/filepath"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/spans"
	"github.com/shimyard/shimyard/shimclient"
)

const (
	// shimDeleteTries is how often a failing `shim delete` is tried before the bundle goes without it. By then no
	// process may be left, and nothing that the OCI runtime keeps of the container.
	shimDeleteTries = 5
	// exitTries is how often it is tried before the exit of the container is told as unknown.
	exitTries = 3
	// defaultRuncRoot is where runc shims have runc keep its state, below it by namespace, if their options do not say.
	defaultRuncRoot = "/run/containerd/runc"
)

// errNoBinary: there is no binary to run `delete` with now.
var errNoBinary = errors.Wrap(errdefs.ErrNotFound, "the shim's binary is gone")

// findExit is the exit as already known, else as `shim delete` says, else as the shim has written it down, else
// unknown. A delete that fails, as many do when hundreds of shims die at once, is tried some times more before the exit
// is unknown for good. Not ok: the manager was closed before.
func (i *Instance) findExit(ctx context.Context) (exit bundle.Exit, ok bool) {
	for pause := i.m.cleanPauses.First; ; pause *= 2 {
		r, err := i.shimDelete(ctx)
		if err != nil && i.m.ctx.Err() != nil {
			return bundle.Exit{}, false
		}
		if err != nil && !errors.Is(err, errNoBinary) && i.remains.First(err.Error()) {
			i.logger(ctx).WithError(err).Warn("cannot ask for the exit of a dead shim's container")
		}
		if err != nil {
			if i.ledger.Init().Alive() {
				i.killInit(ctx) // what the shim's delete would have done
			}
		}
		if e := i.exitAfter(r); e != nil {
			return *e, true
		}
		if err == nil || errors.Is(err, errNoBinary) || i.remains.DeleteTries() >= exitTries {
			return bundle.Exit{Pid: i.ledger.Pid(""), Status: ledger.ExitUnknown}, true
		}
		if !i.m.sleep(await.Spread(pause)) {
			return bundle.Exit{}, false
		}
	}
}

// exitAfter is the exit as it is known after an attempt to delete, whose answer r is nil if it gave none; nil when it
// is not known.
func (i *Instance) exitAfter(r *shimclient.DeleteResult) *bundle.Exit {
	if known := i.ledger.Exit(""); known != nil {
		return known
	}
	if r != nil {
		e := &bundle.Exit{Pid: r.Pid, Status: r.Status, At: r.ExitedAt}
		if e.At.Unix() <= 0 {
			e.At = time.Time{} // when it was first seen stopped, or now
		}
		return e
	}
	d := i.home()
	if d == nil {
		return nil
	}
	e, err := d.ShimExit()
	if pid := i.ledger.Pid(""); err != nil || pid != 0 && pid != e.Pid {
		return nil
	}
	return e
}

// tryShimDelete runs `shim delete`. What it fails with matters only while something may hang on it: a process, or state
// of the OCI runtime, which would refuse the next container of that id. A shim's delete may succeed and leave that
// behind.
func (i *Instance) tryShimDelete(ctx context.Context, orderly bool) error {
	ctx, end := spans.Child(ctx, spans.Delete+".shim_delete")
	_, err := i.shimDelete(ctx)
	end(err)
	switch {
	case orderly && err != nil:
		i.warnOfDelete(ctx, err)
		return nil
	case orderly:
		return nil
	case err != nil && !errors.Is(err, errNoBinary):
		if i.remains.DeleteTries() < shimDeleteTries || i.hasProcess() || i.ledger.Init().Alive() {
			return err
		}
		i.warnOfDelete(ctx, err)
	}
	state := i.runcState(ctx)
	if state == "" {
		return nil
	}
	i.remains.DeleteAgain()
	if err != nil {
		return errors.Wrapf(err,
			"the OCI runtime keeps state of the container in %s, which the shim's delete has to remove", state)
	}
	return errors.Errorf("the shim's delete has left state of the OCI runtime in %s", state)
}

// warnOfDelete says once that what is left is removed without a `shim delete` that has succeeded. What follows may be
// tried many times.
func (i *Instance) warnOfDelete(ctx context.Context, err error) {
	if !errors.Is(err, errNoBinary) && i.remains.First("delete fails") {
		i.logger(ctx).WithError(err).Warn("shim's delete fails; going on without it")
	}
}

// runcState is where runc keeps state of the container; "" when there is none.
func (i *Instance) runcState(ctx context.Context) string {
	root := i.runcOptions(ctx).GetRoot()
	if root == "" {
		root = defaultRuncRoot
	}
	path := filepath.Join(root, i.namespace, i.id)
	if info, err := os.Lstat(path); err != nil || !info.IsDir() {
		return ""
	}
	return path
}

// runcOptions are those in the bundle, else those that the metadata store has of the container; nil when neither has
// any.
func (i *Instance) runcOptions(ctx context.Context) *runcoptions.Options {
	d := i.home()
	if d != nil {
		if o, err := d.RuncOptions(); err == nil {
			return o
		}
	}
	o := &runcoptions.Options{}
	if c := i.container(ctx); c.Runtime.Options == nil || typeurl.UnmarshalTo(c.Runtime.Options, o) != nil {
		return nil // the defaults, or another kind of runtime
	}
	return o
}

// shimDelete runs `shim delete`, waiting for its turn and then within the cleanup timeout. It succeeds once per
// instance; later calls do nothing.
func (i *Instance) shimDelete(ctx context.Context) (*shimclient.DeleteResult, error) {
	d := i.home()
	if d == nil || i.remains.IsShimDeleted() {
		return nil, nil
	}
	b, err := i.deleteBinary(ctx)
	if err != nil {
		return nil, err
	}
	r, err := i.runShimDelete(ctx, d, b)
	if errors.Is(err, shimclient.ErrDeleteReply) {
		// It has done its work, and would say the same the next time.
		i.logger(ctx).WithError(err).Warn("shim has deleted and does not say what")
		r, err = nil, nil
	}
	if err == nil {
		failpoint.Here("clean-shim-delete")
	}
	i.remains.OnShimDelete(err)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot run %s delete", b.Path)
	}
	return r, nil
}

func (i *Instance) runShimDelete(
	ctx context.Context, d *bundle.Bundle, b shimclient.Binary,
) (*shimclient.DeleteResult, error) {
	if err := i.prepareBundle(ctx, d); err != nil {
		return nil, err
	}
	if err := d.Isolate(); err != nil {
		// The delete is what ends the container, so it cannot wait for this.
		if i.remains.First("volumes") {
			i.logger(ctx).WithError(err).
				Warn("what is mounted in volumes of the container may be unmounted on the host as well")
		}
	}
	return i.m.launcher.Delete(ctx, shimclient.DeleteRequest{
		Binary: b, Namespace: i.namespace, ID: i.id, Bundle: d.Path, Timeout: timeout.Get(shimproc.TimeoutCleanup),
	})
}

// prepareBundle gives `shim delete` a bundle to run in where a tmp cleaner, or an operator, has removed the directory,
// and the options that it needs to find runc's state where they, or the file that names runc, are gone or damaged. The
// record goes into the new directory, so that a daemon that dies meanwhile does not take it for a create that was cut
// short.
func (i *Instance) prepareBundle(ctx context.Context, d *bundle.Bundle) error {
	made, err := d.Replace()
	if err != nil {
		return err
	}
	if made {
		i.logger(ctx).WithField("path",
			d.Path).Warn("the bundle's directory is gone: the shim's delete runs in an empty one")
		if err := i.ledger.Persist(); err != nil {
			i.logger(ctx).WithError(err).Warn("cannot write the record of a bundle that was gone")
		}
		failpoint.Here("clean-bundle-replaced")
	}
	o, err := d.RuncOptions()
	if err == nil && (o.BinaryName == "" || d.NamesRunc(o.BinaryName)) {
		return nil
	}
	damaged := errors.Is(err, bundle.ErrForeign)
	missed := errdefs.IsNotFound(err) && i.runcState(ctx) != ""
	if err != nil && !made && !damaged && !missed {
		return nil
	}
	o = i.runcOptions(ctx)
	if o == nil && damaged {
		o = &runcoptions.Options{} // a shim reads nothing else from a file that it cannot read
	}
	if o == nil {
		return nil
	}
	return d.WriteRuncOptions(o)
}

// deleteBinary finds the binary: the one that started the shim, else the one that its runtime's name resolves to today,
// else one of the same file name, since runtimes that clients name by path resolve to nothing else. Each but the first
// is a stand-in, which is used only if the config's check of binaries lets it.
func (i *Instance) deleteBinary(ctx context.Context) (shimclient.Binary, error) {
	i.mu.Lock()
	b, name := i.binary, i.ledger.Passage().Runtime
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
		if r, err := i.m.resolver.Resolve(name); err == nil && i.mayStandIn(ctx, r) {
			return r, nil
		}
	}
	for _, path := range []string{b.Path, name} {
		if r, err := i.m.resolver.ResolveNamesake(path); err == nil && i.mayStandIn(ctx, r) {
			if i.remains.First("run by " + r.Path) {
				i.logger(ctx).WithField("binary", path).
					Warnf("the shim's binary is gone: its delete is run by %s", r.Path)
			}
			return shimclient.Binary{Runtime: b.Runtime, Path: r.Path, File: r.File}, nil
		}
	}
	if i.remains.First("no binary") {
		i.logger(ctx).WithField("binary", b.Path).Warn("the shim's binary is gone: its delete cannot run")
	}
	return shimclient.Binary{}, errNoBinary
}

// mayStandIn tells whether a binary may run the delete of a shim that it has not started.
func (i *Instance) mayStandIn(ctx context.Context, b shimclient.Binary) bool {
	err := i.m.policy.AdmitStandIn(ctx, b)
	if err != nil && i.remains.First("not trusted: "+b.Path) {
		i.logger(ctx).WithError(err).Warn("the shim's binary is gone, and another is not trusted with its delete")
	}
	return err == nil
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

// deletesAlways tells whether `shim delete` is due after an orderly delete.
func (i *Instance) deletesAlways() bool {
	i.mu.Lock()
	b, v, p := i.binary, i.version, i.proc
	i.mu.Unlock()
	if p != nil {
		v = p.TaskVersion() // less than the shim told, after a downgrade
	}
	return i.m.config.deletesAlways(b, v)
}
