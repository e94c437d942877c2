// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"path/filepath"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/shimclient"
)

// sandboxVersion is the first version of the Task API whose shims serve a whole sandbox by themselves. Older ones want `start` for
// each container, even where a group shares one process.
const sandboxVersion = 3

// recordJoin notes that another's shim is to serve the instance. The record first: a bundle with a sandbox or a bootstrap and without a
// record is one of stock containerd, of a task that was created.
func (i *Instance) recordJoin(sandbox string, r *bootapi.BootstrapResult) error {
	if ep, err := shimclient.EndpointOf(r); err == nil {
		if p := i.m.procs.At(ep.Followed()); p != nil {
			i.ledger.recordShim(p.Verified())
		}
	}
	i.mu.Lock()
	i.ledger.joinLocked()
	d := i.bundle
	i.mu.Unlock()
	if err := i.ledger.persist(); err != nil {
		return err
	}
	failpoint.Here("join-recorded")
	return d.WriteSandbox(sandbox)
}

// sandboxShim returns how to reach the shim of the sandbox that opts names; nil when there is none to join: no sandbox named, or one
// from before containerd had a sandbox store, whose containers are grouped by the shim's own `start`.
func (m *ShimManager) sandboxShim(ctx context.Context, i *Instance, opts runtime.CreateOpts) (*bootapi.BootstrapResult, error) {
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

// binaryFor finds the binary of a create's runtime. A container that joins the shim of a sandbox starts none, so that a binary that is gone
// does not keep it from being created: then Path is where the binary was, as far as that is known.
func (m *ShimManager) binaryFor(ctx context.Context, i *Instance, opts runtime.CreateOpts) (shimclient.Binary, error) {
	b, err := m.resolve(ctx, opts.Runtime)
	if !errdefs.IsNotFound(err) {
		return b, err
	}
	r, jerr := m.sandboxShim(ctx, i, opts)
	if jerr != nil || r == nil || r.Version < sandboxVersion {
		return b, err
	}
	log.G(ctx).WithError(err).WithField("sandbox", opts.SandboxID).Warn("the shim's binary is gone; joining the sandbox's shim without it")
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
