// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"encoding/json"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/pkg/errors"
)

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

// readSpec reads the facts. A spec of another type than OCI's is passed on unread; one that is no JSON is an InvalidArgument error.
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
		if m.UIDMappings != nil || m.GIDMappings != nil || slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap") {
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
