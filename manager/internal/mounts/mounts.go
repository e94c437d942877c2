// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package mounts lets containerd's mount manager do those of a task's mounts that its shim does not do itself.
package mounts

import (
	"context"
	"strings"
	"sync"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	apitypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/features"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// allowedMounts is the annotation of `-info` by which a shim from before the MountCapabilities extension names what it
// mounts itself. Kata's EROFS shim uses it (https://github.com/kata-containers/kata-containers/pull/12763).
const allowedMounts = "containerd.io/runtime-allow-mounts"

// ownerLabel ties an activation to its container for the garbage collector.
const ownerLabel = "containerd.io/gc.bref.container"

// noAnnotation are the runtimes that never used the annotation, so that their binaries need not be asked.
var noAnnotation = map[string]bool{plugins.RuntimeRuncV2: true, "io.containerd.runhcs.v1": true}

// Controller activates and deactivates the mounts of tasks. Safe for concurrent use.
type Controller struct {
	manager  mount.Manager // nil: there is none, and shims do all mounts
	features *features.Cache
	// silent has the binaries, by what they are, that were asked in vain: each create asks again, and one logs it.
	silent sync.Map
}

// New makes a controller. Without a mount manager shims do all mounts.
func New(m mount.Manager, f *features.Cache) *Controller { return &Controller{manager: m, features: f} }

// Activate returns the mounts that are left for the shim. owned tells that a failed create has to deactivate them.
func (c *Controller) Activate(
	ctx context.Context, id string, b shimclient.Binary, r *bootapi.BootstrapResult, rootfs []mount.Mount,
) (left []mount.Mount, owned bool, err error) {
	if c.manager == nil {
		return rootfs, false, nil
	}
	opts := []mount.ActivateOpt{mount.WithLabels(map[string]string{ownerLabel: id})}
	caps := c.capabilities(ctx, b, r)
	for _, t := range caps.GetTypes() {
		opts = append(opts, mount.WithAllowMountType(t))
	}
	for _, t := range caps.GetTransforms() {
		opts = append(opts, mount.WithAllowTransform(t))
	}
	info, err := c.manager.Activate(ctx, id, rootfs, opts...)
	switch {
	case err == nil:
		return info.System, true, nil
	case errdefs.IsNotImplemented(err):
		return rootfs, false, nil // nothing among them needs the mount manager
	case errdefs.IsAlreadyExists(err):
		// The container's earlier task left them; its back reference keeps them while the container exists.
		info, err := c.manager.Info(ctx, id)
		if err != nil {
			return nil, false, errors.Wrapf(err, "cannot find the active mounts of %s", id)
		}
		return info.System, false, nil
	}
	return nil, false, errors.Wrapf(err, "cannot activate the mounts of %s", id)
}

// Deactivate undoes an activation; none is fine.
func (c *Controller) Deactivate(ctx context.Context, id string) error {
	if c == nil || c.manager == nil {
		return nil
	}
	ctx, cancel := timeout.WithContext(context.WithoutCancel(ctx), shimproc.TimeoutCleanup)
	defer cancel()
	if err := c.manager.Deactivate(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// capabilities is what the shim says it mounts itself: by its bootstrap answer, else by the annotation. What cannot be
// read claims nothing, then the mount manager does the work.
func (c *Controller) capabilities(
	ctx context.Context, b shimclient.Binary, r *bootapi.BootstrapResult,
) *apitypes.MountCapabilities {
	var caps apitypes.MountCapabilities
	found, err := r.FindExtension(&caps)
	if err != nil {
		log.G(ctx).WithError(err).Warn("cannot read what the shim mounts itself, assuming nothing")
		return nil
	}
	if found {
		return &caps
	}
	if noAnnotation[b.Runtime] {
		return nil
	}
	info, err := c.features.Info(ctx, b, nil)
	if err != nil {
		if _, twice := c.silent.LoadOrStore(b.File, true); !twice {
			log.G(ctx).WithError(err).WithField("shim", b.Path).
				Warn("cannot ask the shim what it mounts itself, assuming nothing")
		}
		return nil
	}
	return parseAllowedMounts(info.GetAnnotations()[allowedMounts])
}

// parseAllowedMounts reads the annotation: types separated by commas, a transform is written "NAME/*".
func parseAllowedMounts(v string) *apitypes.MountCapabilities {
	caps := &apitypes.MountCapabilities{}
	for e := range strings.SplitSeq(v, ",") {
		switch t, transform := strings.CutSuffix(e, "/*"); {
		case t == "":
		case transform:
			caps.Transforms = append(caps.Transforms, t)
		default:
			caps.Types = append(caps.Types, t)
		}
	}
	return caps
}
