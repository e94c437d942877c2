// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package manager

import (
	"testing"
	"time"
)

// cpuTime is not known on this platform.
func cpuTime(*testing.B) time.Duration { return 0 }
