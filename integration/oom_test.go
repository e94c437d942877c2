// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shimsGiveUp is after what time a shim no longer tries to tell what it could
// not tell to a daemon that was killed.
const shimsGiveUp = 18 * time.Second

// A container that is ended for lack of memory while the daemon is away for
// longer than its shim tries: the reason is told all the same.
func TestOOMWhileDown(t *testing.T) {
	t.Parallel()
	needRoot(t)
	n := newCRINode(t)
	p := n.runPod("pod")
	const script = "while [ ! -e /go ]; do sleep 0.02; done; exec dd if=/dev/zero of=/dev/null bs=512M count=1"
	limit := &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}
	hungry := p.startLimited("hungry", limit, "sh", "-c", script)
	// Ended by SIGKILL too, and not for that.
	victim := p.startLimited("victim", limit, "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; kill -9 $$")
	n.Kill()
	for _, id := range []string{hungry, victim} {
		require.NoError(t, os.WriteFile(filepath.Join(n.Bundle(criNS, id), "rootfs", "go"), nil, 0o600))
	}
	time.Sleep(shimsGiveUp)
	n.Run()
	p.rt = n.criClient()
	require.Eventually(t, func() bool { return p.status(hungry).Reason == "OOMKilled" }, patience, tick)
	require.Equal(t, cri.ContainerState_CONTAINER_EXITED, p.status(hungry).State)
	require.EqualValues(t, 137, p.status(hungry).ExitCode)
	require.Equal(t, cri.ContainerState_CONTAINER_EXITED, p.status(victim).State)
	require.Equal(t, "Error", p.status(victim).Reason)
	p.remove()
}
