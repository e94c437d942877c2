// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/containerd/v2/pkg/deprecation"
	"github.com/containerd/containerd/v2/plugins/services/warning"
)

// maxSocketDirLen: a unix socket's address takes 107 bytes, of which a slash and a hash in hex take 65.
const maxSocketDirLen = 107 - 65

// emitPlatformWarnings tells the warning service of what is deprecated about this machine.
func emitPlatformWarnings(ctx context.Context, warnings warning.Service) {
	if cgroups.Mode() != cgroups.Unified {
		warnings.Emit(ctx, deprecation.CgroupV1)
	}
}
