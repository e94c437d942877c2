// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func TestMain(m *testing.M) {
	shimtest.Dispatch()
	if err := log.SetLevel("fatal"); err != nil {
		panic(err)
	}
	// Longer than a busy machine needs for anything. Tests that are about one of them set it, as short as they like,
	// from where nothing that has to succeed hangs on it.
	for _, name := range []string{shimproc.TimeoutLoad, shimproc.TimeoutCleanup, shimproc.TimeoutShutdown} {
		timeout.Set(name, time.Minute)
	}
	shimtest.MainInParts(m, 4)
}
