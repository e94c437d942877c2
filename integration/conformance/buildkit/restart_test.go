// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package buildkit

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

func TestRestartBetweenBuilds(t *testing.T) {
	for name, sig := range ways {
		t.Run(name, func(t *testing.T) {
			h := theHost(t)
			require.Equal(t, "yes", h.build(t, "FROM "+Image+"\nRUN echo yes > /before\n").file("before"))
			h.restart(t, sig)
			require.Equal(t, "yes", h.build(t, "FROM "+Image+"\nRUN echo yes > /after-"+sig.String()[:4]+"\n").
				file("after-"+sig.String()[:4]))
		})
	}
}

var ways = map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL}

// A step outlives the daemon, and its output with it. buildkitd has waited for it by a connection that ended with the
// daemon, and says so once the step has ended.
func TestRestartUnderAStep(t *testing.T) {
	for name, sig := range ways {
		t.Run(name, func(t *testing.T) {
			h := theHost(t)
			b, end := h.longStep(t, ends["obedient"], 1)
			pid := h.pid(t)
			h.restart(t, sig)
			require.Equal(t, pid, h.pid(t))
			require.True(t, procs.Alive(pid))
			require.Equal(t, "yes", h.build(t, "FROM "+Image+"\nRUN echo yes > /beside\n", "--no-cache").file("beside"))
			require.True(t, procs.Alive(pid))
			procs.Signal(t, pid, syscall.SIGTERM)
			require.Error(t, <-end, "%s", &b.output)
			require.False(t, procs.Alive(pid))
		})
	}
}
