// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/pkg/errors"
)

// RemappedGID returns the host's group to which an OCI spec maps the container's group 0; 0 when it maps none, and for an empty spec.
// Errors: InvalidArgument when the spec is not JSON of the right form.
func RemappedGID(spec []byte) (uint32, error) {
	if len(spec) == 0 {
		return 0, nil
	}
	// Only the part that is needed: specs are large, and this runs for every create.
	var s struct {
		Linux *struct {
			GIDMappings []specs.LinuxIDMapping `json:"gidMappings"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(spec, &s); err != nil {
		return 0, errors.Wrapf(errdefs.ErrInvalidArgument, "cannot read the gid mappings of the spec: %v", err)
	}
	if s.Linux == nil {
		return 0, nil
	}
	for _, m := range s.Linux.GIDMappings {
		if m.ContainerID == 0 {
			return m.HostID, nil
		}
	}
	return 0, nil
}
