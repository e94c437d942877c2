// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package features asks a shim's binary what its runtime can do, and remembers the answers. It knows nothing of a
// container.
package features

import (
	"context"
	"os/exec"
	"sync"

	apitypes "github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/shimclient"
)

// Cache keeps the answers of `-info`. Safe for concurrent use.
type Cache struct {
	launcher *shimclient.Launcher

	// mu guards answers. A stale entry is replaced under its key's path when a binary is upgraded, so the map stays as
	// small as the number of runtimes and options in use.
	mu sync.Mutex
	// +checklocks:mu
	answers map[question]answer
}

// New makes a cache without answers. The launcher runs the binaries.
func New(l *shimclient.Launcher) *Cache {
	return &Cache{launcher: l, answers: make(map[question]answer)}
}

type question struct {
	path, options string
}

// answer holds for as long as the files that gave it are the same.
type answer struct {
	shim    shimclient.FileID
	runtime shimclient.FileID
	info    *apitypes.RuntimeInfo
}

// Info asks a shim's binary about its runtime, once per identity of the binary, options and identity of the OCI
// runtime.
func (c *Cache) Info(
	ctx context.Context, b shimclient.Binary, options *anypb.Any,
) (*apitypes.RuntimeInfo, error) {
	q := question{path: b.Path, options: options.GetTypeUrl() + "\x00" + string(options.GetValue())}
	rt := ociRuntime(options)
	c.mu.Lock()
	a, ok := c.answers[q]
	c.mu.Unlock()
	if ok && a.shim == b.File && a.runtime == rt {
		return a.info, nil
	}
	info, err := c.launcher.Info(ctx, b, options)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[q] = answer{shim: b.File, runtime: rt, info: info}
	return info, nil
}

// ociRuntimeName is the OCI runtime that runc-like options name, else runc, as its shim has it.
func ociRuntimeName(options *anypb.Any) string {
	if options != nil {
		var o runcoptions.Options
		if typeurl.UnmarshalTo(options, &o) == nil && o.BinaryName != "" {
			return o.BinaryName
		}
	}
	return "runc"
}

// ociRuntime is the identity of the OCI runtime that the options name; the zero value where it cannot be found.
func ociRuntime(options *anypb.Any) shimclient.FileID {
	path, err := exec.LookPath(ociRuntimeName(options))
	if err != nil {
		return shimclient.FileID{}
	}
	id, err := shimclient.IdentifyFile(path)
	if err != nil {
		return shimclient.FileID{}
	}
	return id
}

// CheckIDMap refuses a spec with id-mapped mounts, at the destinations given, unless the OCI runtime says that it does
// them: runc ignores what it does not know, and the files would get wrong owners
// (https://github.com/opencontainers/runtime-spec/pull/1219). A runtime that tells nothing of its features may be an
// old runc, so it is refused too. One that tells them in a form of its own is not of runc's kind and is not held to the
// rule, as in containerd's own runtime. Errors: NotImplemented; that of `-info`.
func (c *Cache) CheckIDMap(ctx context.Context, b shimclient.Binary, options *anypb.Any, mounts []string) error {
	info, err := c.Info(ctx, b, options)
	if err != nil {
		return errors.Wrap(err, "cannot tell whether the runtime supports id-mapped mounts")
	}
	if info.GetFeatures().GetTypeUrl() == "" {
		return refuseIDMap(b, options, mounts, "does not tell whether it supports them")
	}
	v, err := typeurl.UnmarshalAny(info.Features)
	if err != nil {
		return errors.Wrapf(err, "cannot read the runtime's features (%s)", info.Features.TypeUrl)
	}
	f, ok := v.(*features.Features)
	if !ok {
		return nil
	}
	if f.Linux == nil || f.Linux.MountExtensions == nil || f.Linux.MountExtensions.IDMap == nil ||
		f.Linux.MountExtensions.IDMap.Enabled == nil || !*f.Linux.MountExtensions.IDMap.Enabled {
		return refuseIDMap(b, options, mounts, "does not support them")
	}
	return nil
}

func refuseIDMap(b shimclient.Binary, options *anypb.Any, mounts []string, why string) error {
	return errors.Wrapf(errdefs.ErrNotImplemented,
		"the spec has id-mapped mounts (%q) and the OCI runtime %s of %s (%s) %s; use one that does (runc 1.2 or later)",
		mounts, ociRuntimeName(options), b.Runtime, b.Path, why)
}
