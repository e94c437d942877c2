// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

func TestPod(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "pod", nil, container("one", "echo first; echo second >&2; touch /shared/one; "+obedient),
		container("two", "until [ -e /shared/one ]; do sleep 0.1; done; "+obedient)).ready()
	// Between two streams there is no order.
	require.ElementsMatch(t, []string{"first", "second"}, strings.Fields(p.log("one")))
	require.Equal(t, "yes", h.Exec(t, p.id("two"), "echo yes"))
	require.Len(t, p.sandboxes(), 1)
	require.Equal(t, procs.Parent(t, p.pid("one")), procs.Parent(t, p.pid("two")), "a pod has one shim")
	require.Contains(t, h.Exec(t, p.id("one"), "ip addr show eth0"), p.status().Status.PodIP)
}

func TestRestartPolicy(t *testing.T) {
	h := theHost(t)
	count := "echo >> /shared/count; sleep 1; "
	t.Run("Always", func(t *testing.T) {
		p := h.run(t, "always", nil, container("c", count+"exit 3"))
		c := p.await("c", func(c containerStatus) bool { return c.RestartCount >= 2 && c.LastState.Terminated != nil })
		require.Equal(t, 3, c.LastState.Terminated.ExitCode)
	})
	t.Run("OnFailure", func(t *testing.T) {
		p := h.run(t, "on-failure", object{"restartPolicy": "OnFailure"},
			container("c", count+"[ $(wc -l < /shared/count) -ge 3 ]"))
		p.awaitPhase("Succeeded")
		require.Equal(t, 2, p.container("c").RestartCount)
	})
	t.Run("Never", func(t *testing.T) {
		p := h.run(t, "never", object{"restartPolicy": "Never"}, container("c", count+"exit 5"))
		p.awaitPhase("Failed")
		c := p.container("c")
		require.Zero(t, c.RestartCount)
		require.Equal(t, 5, c.State.Terminated.ExitCode)
		require.Equal(t, "Error", c.State.Terminated.Reason)
	})
}

func TestInitContainersInOrder(t *testing.T) {
	h := theHost(t)
	var init []object
	for i := range 4 {
		init = append(init, container(fmt.Sprint("init", i), fmt.Sprintf("sleep 0.5; echo %d >> /shared/order", i)))
	}
	p := h.run(t, "init", object{"initContainers": init},
		container("c", "echo main >> /shared/order; "+obedient)).ready()
	require.Equal(t, "0 1 2 3 main", strings.Join(strings.Fields(p.file("order")), " "))
}

// One that fails is run again, and nothing goes on before it has succeeded.
func TestInitContainerFails(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "init-fails", object{"initContainers": []object{
		container("init", "echo try >> /shared/order; [ $(wc -l < /shared/order) -ge 3 ]"),
	}}, container("c", "echo main >> /shared/order; "+obedient)).ready()
	require.Equal(t, "try try try main", strings.Join(strings.Fields(p.file("order")), " "))
	require.Equal(t, 2, p.container("init").RestartCount)
}

// A sidecar is there before the others, and still there when they end.
func TestSidecar(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "sidecar", object{"restartPolicy": "Never", "initContainers": []object{
		container("side", "touch /shared/side; trap 'rm /shared/side; exit 0' TERM; while true; do sleep 0.1; done",
			object{"restartPolicy": "Always"},
			object{"startupProbe": probe("test -e /shared/side", object{"failureThreshold": 60})}),
	}}, container("c", "ls /shared/side > /shared/seen; sleep 1; ls /shared/side >> /shared/seen"))
	p.awaitPhase("Succeeded")
	require.Equal(t, "/shared/side\n/shared/side", p.file("seen"))
	procs.Eventually(t, patience, func() bool { return len(p.alive()) == 0 && p.file("side") == "" })
	require.NoFileExists(t, filepath.Join(p.dir, "side"))
}

// probe is a probe by a command.
func probe(command string, further object) object {
	p := object{"exec": object{"command": []string{"sh", "-c", command}}, "periodSeconds": 1, "timeoutSeconds": 20}
	for k, v := range further {
		p[k] = v
	}
	return p
}

func TestLiveness(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "liveness", nil,
		container("c", "touch /shared/alive; "+obedient,
			object{"livenessProbe": probe("test -e /shared/alive", object{"failureThreshold": 2})}),
		container("other", obedient)).ready()
	other := p.pid("other")
	require.NoError(t, os.Remove(filepath.Join(p.dir, "alive")))
	c := p.await("c", restarted(1))
	require.Equal(t, 7, c.LastState.Terminated.ExitCode)
	p.ready()
	require.Zero(t, p.container("other").RestartCount)
	require.Equal(t, other, p.pid("other"))
	require.True(t, procs.Alive(other))
}

func TestReadiness(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "readiness", nil, container("c", obedient,
		object{"readinessProbe": probe("test -e /shared/ready", object{"failureThreshold": 1})}))
	c := p.await("c", restarted(0))
	require.False(t, c.Ready)
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "ready"), nil, 0o644))
	p.await("c", ready)
	require.NoError(t, os.Remove(filepath.Join(p.dir, "ready")))
	p.await("c", func(c containerStatus) bool { return !c.Ready })
	require.Zero(t, p.container("c").RestartCount)
}

func TestProbesByNetwork(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "network", nil, object{
		"name": "c", "image": "registry.k8s.io/e2e-test-images/nginx:1.14-2", "imagePullPolicy": "IfNotPresent",
		"livenessProbe":  object{"tcpSocket": object{"port": 80}, "periodSeconds": 1},
		"readinessProbe": object{"httpGet": object{"port": 80, "path": "/"}, "periodSeconds": 1},
	}).ready()
	require.Zero(t, p.container("c").RestartCount)
}

// The pause is for the shim, which begins to listen for OOM kills once the container runs.
func TestOOM(t *testing.T) {
	h := theHost(t)
	p := h.run(t, "oom", object{"restartPolicy": "Never"},
		container("c", "sleep 1; exec tail /dev/zero", object{"resources": object{"limits": object{"memory": "24Mi"}}}))
	p.awaitPhase("Failed")
	c := p.container("c")
	require.Equal(t, 137, c.State.Terminated.ExitCode)
	require.Equal(t, "OOMKilled", c.State.Terminated.Reason)
}

func TestManyPods(t *testing.T) {
	h := theHost(t)
	var pods []*pod
	for i := range 10 {
		pods = append(pods, h.run(t, fmt.Sprint("many-", i), nil, container("c", obedient)))
	}
	for _, p := range pods {
		require.Zero(t, p.ready().container("c").RestartCount)
	}
	for _, p := range pods {
		require.NoError(t, os.Remove(p.manifest()))
	}
	for _, p := range pods {
		procs.Eventually(t, patience, func() bool { return len(p.alive()) == 0 })
	}
}
