// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/crinode"
	"github.com/shimyard/shimyard/integration/conformance/procs"
)

// TestGracefulDeletion: a pod that goes is told so, has its time, and is killed after that.
func TestGracefulDeletion(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "graceful", object{"terminationGracePeriodSeconds": 60},
		container("c", "trap 'echo TERM >> /shared/end; sleep 2; echo done >> /shared/end; exit 0' TERM; "+
			"touch /shared/up; while true; do sleep 0.1; done",
			object{"lifecycle": object{
				"postStart": object{"exec": object{"command": []string{"sh", "-c", "echo started > /shared/start"}}},
				"preStop":   object{"exec": object{"command": []string{"sh", "-c", "echo preStop >> /shared/end; sleep 1"}}},
			}})).ready()
	procs.Eventually(t, patience, func() bool { _, err := os.Stat(p.dir + "/up"); return err == nil })
	require.Equal(t, "started", p.file("start"))
	pid := p.pid("c")
	p.remove()
	require.Equal(t, "preStop\nTERM\ndone", p.file("end"))
	require.False(t, procs.Alive(pid))
}

func TestDeletionOfTheDeaf(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "deaf", object{"terminationGracePeriodSeconds": 2},
		container("c", "trap 'echo TERM > /shared/end' TERM; touch /shared/up; while true; do sleep 0.1; done")).ready()
	procs.Eventually(t, patience, func() bool { _, err := os.Stat(p.dir + "/up"); return err == nil })
	pid := p.pid("c")
	p.remove()
	require.Equal(t, "TERM", p.file("end"))
	require.False(t, procs.Alive(pid))
}

// A changed manifest is another pod in place of the first.
func TestChangedManifest(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "changed", nil, container("c", obedient)).ready()
	pid := p.pid("c")
	p.write(object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": p.name},
		"spec": object{"containers": []object{{
			"name": "d", "image": crinode.Image, "command": []string{"sh", "-c", obedient},
		}}}})
	p.await("d", ready)
	procs.Gone(t, pid)
	require.Len(t, p.alive(), 2, "the container and its pod's sandbox")
}
