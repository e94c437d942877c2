// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package buildkit

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

// ends are steps, by how they take to being ended.
var ends = map[string]string{
	"plain":    "exec sleep 1000000",
	"obedient": "trap 'exit 0' TERM; while true; do sleep 0.1; done",
	"deaf":     "trap '' TERM INT; while true; do sleep 0.1; done",
	"with offspring": "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; sleep 1000000 & sleep 1000000' & done; " +
		"sleep 1000000",
}

// longStep begins a build whose step does not end, and returns once its processes are there.
func (h *host) longStep(t *testing.T, script string, processes int) (*build, <-chan error) {
	t.Helper()
	b, end := h.begin(t, "FROM "+Image+"\nENV "+mark+"\nRUN "+script+"\n")
	procs.Eventually(t, procs.Patience, func() bool {
		select {
		case err := <-end:
			t.Fatalf("the build has ended: %v\n%s", err, &b.output)
		default:
		}
		return len(h.running(t)) == 1 && len(steps()) >= processes
	})
	return b, end
}

func TestCancelledBuild(t *testing.T) {
	for name, script := range ends {
		t.Run(name, func(t *testing.T) {
			h := theHost(t) // and nothing is left
			b, end := h.longStep(t, script, map[bool]int{true: 7, false: 1}[name == "with offspring"])
			require.NoError(t, b.cmd.Process.Signal(syscall.SIGINT))
			require.Error(t, <-end)
			procs.Eventually(t, procs.Patience, func() bool { return len(h.running(t)) == 0 && len(steps()) == 0 })
			require.Equal(t, "yes", h.build(t, "FROM "+Image+"\nRUN echo yes > /after\n").file("after"))
		})
	}
}

// The client of a build dies, and cannot cancel it.
func TestBuildOfADeadClient(t *testing.T) {
	h := theHost(t)
	b, end := h.longStep(t, ends["deaf"], 1)
	require.NoError(t, b.cmd.Process.Kill())
	<-end
	procs.Eventually(t, procs.Patience, func() bool { return len(h.running(t)) == 0 && len(steps()) == 0 })
}
