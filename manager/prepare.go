// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// reserve enters i into the map. Where an earlier instance of the id is on its way out it waits, up to the cleanup
// timeout, then says AlreadyExists and what is left.
func (m *ShimManager) reserve(ctx context.Context, i *Instance) error {
	if err := m.awaitReady(ctx); err != nil {
		return err
	}
	wctx, cancel := timeout.WithContext(ctx, shimproc.TimeoutCleanup)
	defer cancel()
	var other *Instance
	var refused error
	err := await.Until(wctx, func() (await.Wake, bool) {
		if other = m.enterFree(i); other == nil {
			return await.Wake{}, true
		}
		st, changed := other.watch()
		if !st.IsEnding() {
			refused = errReserved(other)
		}
		return await.Wake{changed}, !st.IsEnding()
	})
	switch {
	case err == nil:
		return refused
	case ctx.Err() != nil:
		return errors.Wrapf(ctx.Err(), "waiting for the end of an earlier %s %s", i.kind, i.id)
	}
	return errReserved(other)
}

// errReserved is the answer to a create whose id still belongs to an earlier instance.
func errReserved(i *Instance) error {
	st, left := i.status()
	if left != nil {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s %s is still being cleaned up: %v", i.kind, i.id, left)
	}
	return errors.Wrapf(errdefs.ErrAlreadyExists, "%s %s (%s)", i.kind, i.id, st)
}

// createRequest is what a create asks for.
type createRequest struct {
	specFacts
	options *anypb.Any // of the runtime
}

// readRequest reads what a create asks for. Errors: InvalidArgument.
func readRequest(opts runtime.CreateOpts) (*createRequest, error) {
	facts, err := readSpec(opts.Spec)
	if err != nil {
		return nil, err
	}
	return &createRequest{specFacts: facts, options: options(opts)}, nil
}

// files are what the client has in the bundle.
func (r *createRequest) files() bundle.CreateOptions {
	return bundle.CreateOptions{Spec: r.raw, GID: r.gid}
}

// specFacts is what the manager has to know of an OCI spec. The spec is read once per create.
type specFacts struct {
	// raw is config.json; nil where there is no spec.
	raw []byte
	// gid that the container's root group is mapped to; 0 where it is not.
	gid uint32
	// idmapped are the destinations of the mounts that are to be id-mapped.
	idmapped []string
	// groups are the ids under which shims that serve several containers name their sockets.
	groups []string
	// runcGroup: the group is one of runc's shim, not a pod.
	runcGroup bool
}

// groupLabels are the annotations by which runc's shim, and those made after it, group containers.
var groupLabels = []string{runcGroupLabel, "io.kubernetes.cri.sandbox-id"}

const runcGroupLabel = "io.containerd.runc.v2.group"

// readSpec reads the facts. A spec of another type than OCI's is passed on unread; one that is no JSON is an
// InvalidArgument error.
func readSpec(spec typeurl.Any) (specFacts, error) {
	if spec == nil || spec.GetValue() == nil {
		return specFacts{}, nil
	}
	if !typeurl.Is(spec, (*specs.Spec)(nil)) {
		return specFacts{raw: spec.GetValue()}, nil
	}
	return parseSpec(spec.GetValue())
}

// parseSpec reads the facts of an OCI spec. Errors: InvalidArgument.
func parseSpec(raw []byte) (specFacts, error) {
	facts := specFacts{raw: raw}
	var s struct {
		Annotations map[string]string `json:"annotations"`
		Mounts      []struct {
			Destination string                 `json:"destination"`
			Options     []string               `json:"options"`
			UIDMappings []specs.LinuxIDMapping `json:"uidMappings"`
			GIDMappings []specs.LinuxIDMapping `json:"gidMappings"`
		} `json:"mounts"`
		Linux *struct {
			GIDMappings []specs.LinuxIDMapping `json:"gidMappings"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(facts.raw, &s); err != nil {
		return specFacts{}, errors.Wrapf(errdefs.ErrInvalidArgument, "cannot read the container's OCI spec: %v", err)
	}
	for _, m := range s.Mounts {
		if m.UIDMappings != nil || m.GIDMappings != nil ||
			slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap") {
			facts.idmapped = append(facts.idmapped, m.Destination)
		}
	}
	for _, label := range groupLabels {
		if id := s.Annotations[label]; id != "" {
			facts.groups = append(facts.groups, id)
			facts.runcGroup = facts.runcGroup || label == runcGroupLabel
		}
	}
	if s.Linux != nil {
		for _, m := range s.Linux.GIDMappings {
			if m.ContainerID == 0 {
				facts.gid = m.HostID
				break
			}
		}
	}
	return facts, nil
}

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

// resolve finds the binary of a runtime that is to be started or asked for a client, if it may be.
func (m *ShimManager) resolve(ctx context.Context, runtime string) (shimclient.Binary, error) {
	b, err := m.resolver.Resolve(runtime)
	if err == nil {
		err = m.policy.Admit(ctx, b)
	}
	if err == nil {
		metrics.Resolved(runtime)
	}
	return b, err
}

// describe fills a new instance with what is known of it before there is anything of it. forget is for the end of the
// create: the spec is as large as a client makes it.
func (i *Instance) describe(r *createRequest, b shimclient.Binary) (forget func()) {
	i.request = r
	i.mu.Lock()
	defer i.mu.Unlock()
	i.binary, i.groups = b, r.groups
	i.ledger.Begin(b.Runtime)
	return func() { i.request = nil }
}

// prepare makes the bundle of a reserved instance whose shim has none for it.
func (m *ShimManager) prepare(ctx context.Context, i *Instance) error {
	return metrics.MakingBundle(func() error { return m.makeBundle(ctx, i) })
}

func (m *ShimManager) makeBundle(ctx context.Context, i *Instance) error {
	o := i.request.files()
	d, err := i.layout.Create(i.namespace, i.id, o)
	if errdefs.IsAlreadyExists(err) {
		// The id is ours, so no other instance has this directory: a create or a removal was cut short and could not be
		// undone.
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

// clearLeftover removes the bundle of a dead instance that is in no map. One whose shim may live stays, and the
// id with it; so does a directory that is no bundle, and one that cannot be read: what is in it may be a user's data.
// Errors: AlreadyExists.
func (m *ShimManager) clearLeftover(ctx context.Context, i *Instance) error {
	old := newInstance(m, i.layout, i.kind, i.namespace, i.id, life.Reaping)
	d, err := i.layout.Open(i.namespace, i.id)
	if err != nil {
		return err
	}
	if !d.Recognized() {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s is in the way of %s %s and is no bundle; move it away",
			d.Path, i.kind, i.id)
	}
	old.load(ctx, d)
	shim := old.ledger.Passage().Shim
	if shim.Alive() || old.hasProcess() || shim == (shimclient.ProcessID{}) && m.serves(ctx, d) {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s %s has a bundle %s whose shim still runs; end that first",
			i.kind, i.id, d.Path)
	}
	old.logger(ctx).WithField("path", d.Path).Warn("removing the leftover of an earlier instance")
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

// clearPlace removes what an earlier instance has left in the place of the bundle, or says why it stays.
func (m *ShimManager) clearPlace(ctx context.Context, i *Instance) error {
	if _, err := i.layout.Open(i.namespace, i.id); errdefs.IsNotFound(err) {
		return nil
	}
	return m.clearLeftover(ctx, i)
}
