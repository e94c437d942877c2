// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func TestMain(m *testing.M) {
	shimtest.Dispatch()
	if err := log.SetLevel("fatal"); err != nil {
		panic(err)
	}
	// As the plugin registers them.
	timeout.Set(TimeoutLoad, 5*time.Second)
	timeout.Set(TimeoutCleanup, 5*time.Second)
	timeout.Set(TimeoutShutdown, 3*time.Second)
	shimtest.Main(m)
}
