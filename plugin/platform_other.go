// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package plugin

import (
	"context"

	"github.com/containerd/containerd/v2/plugins/services/warning"
)

// emitPlatformWarnings has nothing to tell: only Linux has anything deprecated.
func emitPlatformWarnings(context.Context, warning.Service) {}
