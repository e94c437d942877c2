// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shimyard/shimyard/integration/conformance/crinode"
	"github.com/shimyard/shimyard/integration/conformance/procs"
)

// object is a part of a manifest.
type object map[string]any

// pod is one of a test's.
type pod struct {
	t    *testing.T
	h    *host
	name string
	// dir is a directory of the node that its containers have as /shared.
	dir string
}

// obedient exits with 7 on SIGTERM.
const obedient = "trap 'exit 7' TERM; while true; do sleep 0.1; done"

// container is a container that runs a script. further are further fields.
func container(name, script string, further ...object) object {
	c := object{
		"name": name, "image": crinode.Image, "imagePullPolicy": "IfNotPresent", "command": []string{"sh", "-c", script},
		"volumeMounts": []object{{"name": "shared", "mountPath": "/shared"}},
	}
	for _, f := range further {
		for k, v := range f {
			c[k] = v
		}
	}
	return c
}

// run hands kubelet the manifest of a pod of the containers. The pod is removed when the test ends, and is gone then.
func (h *host) run(t *testing.T, name string, spec object, containers ...object) *pod {
	t.Helper()
	p := &pod{t: t, h: h, name: name, dir: t.TempDir()}
	full := object{
		"containers": containers, "terminationGracePeriodSeconds": 20,
		"volumes": []object{{"name": "shared", "hostPath": object{"path": p.dir}}},
	}
	for k, v := range spec {
		full[k] = v
	}
	p.write(object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name}, "spec": full})
	t.Cleanup(p.remove)
	return p
}

func (p *pod) manifest() string { return filepath.Join(Manifests, p.name+".json") }

// write puts the manifest in place at once: kubelet watches the directory.
func (p *pod) write(manifest object) {
	p.t.Helper()
	data, err := json.Marshal(manifest)
	require.NoError(p.t, err)
	tmp := filepath.Join(filepath.Dir(Manifests), p.name)
	require.NoError(p.t, os.WriteFile(tmp, data, 0o644))
	require.NoError(p.t, os.Rename(tmp, p.manifest()))
}

// remove removes the manifest and waits until nothing of the pod is left that kubelet does not keep: it keeps dead
// containers for a while.
func (p *pod) remove() {
	p.t.Helper()
	if err := os.Remove(p.manifest()); !os.IsNotExist(err) {
		require.NoError(p.t, err)
	}
	procs.Eventually(p.t, patience, func() bool {
		pods, err := p.h.pods()
		_, known := pods[p.full()]
		return err == nil && !known && len(p.alive()) == 0 && len(p.sandboxes()) == 0
	})
}

// full is the pod's name as kubelet has it, with the node's.
func (p *pod) full() string { return p.name + "-box" }

// alive are the ids of what is alive of the pod: tasks of its containers, and of its sandbox.
func (p *pod) alive() []string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), procs.Patience)
	defer cancel()
	all, err := p.h.client.Containers(ctx, `labels."io.kubernetes.pod.name"==`+p.full())
	require.NoError(p.t, err)
	var ids []string
	for _, c := range all {
		if _, err := c.Task(ctx, nil); err == nil {
			ids = append(ids, c.ID())
		}
	}
	return ids
}

// status is what kubelet says, and all of it empty until it says something.
func (p *pod) status() podStatus {
	p.t.Helper()
	pods, err := p.h.pods()
	require.NoError(p.t, err)
	return pods[p.full()]
}

// container is what kubelet says of one, init containers included.
func (p *pod) container(name string) containerStatus {
	p.t.Helper()
	s := p.status().Status
	for _, c := range append(s.ContainerStatuses, s.InitContainerStatuses...) {
		if c.Name == name {
			return c
		}
	}
	return containerStatus{}
}

// await waits until kubelet says that of a container.
func (p *pod) await(name string, condition func(c containerStatus) bool) containerStatus {
	p.t.Helper()
	var c containerStatus
	procs.Eventually(p.t, patience, func() bool { c = p.container(name); return condition(c) })
	return c
}

func ready(c containerStatus) bool { return c.Ready }

// restarted is true of a container that was restarted at least so often and runs.
func restarted(times int) func(containerStatus) bool {
	return func(c containerStatus) bool { return c.RestartCount >= times && c.State.Running != nil }
}

// awaitPhase waits until the pod is in the phase.
func (p *pod) awaitPhase(phase string) {
	p.t.Helper()
	procs.Eventually(p.t, patience, func() bool { return p.status().Status.Phase == phase })
}

// ready waits until all containers of the pod are.
func (p *pod) ready() *pod {
	p.t.Helper()
	procs.Eventually(p.t, patience, func() bool {
		list := p.status().Status.ContainerStatuses
		for _, c := range list {
			if !c.Ready {
				return false
			}
		}
		return len(list) > 0
	})
	return p
}

// id is that of a container in the daemon.
func (p *pod) id(name string) string {
	p.t.Helper()
	_, id, ok := strings.Cut(p.container(name).ContainerID, "://")
	require.True(p.t, ok, "%s has no container", name)
	return id
}

// pid is that of a container's first process.
func (p *pod) pid(name string) int {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), procs.Patience)
	defer cancel()
	c, err := p.h.client.LoadContainer(ctx, p.id(name))
	require.NoError(p.t, err)
	task, err := c.Task(ctx, nil)
	require.NoError(p.t, err)
	require.NotZero(p.t, task.Pid())
	return int(task.Pid())
}

// file is one of the pod's directory, trimmed; empty if there is none.
func (p *pod) file(name string) string {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	if !os.IsNotExist(err) {
		require.NoError(p.t, err)
	}
	return strings.TrimSpace(string(data))
}

// log is what a container wrote, as its log has it, without the times.
func (p *pod) log(name string) string {
	p.t.Helper()
	files, _ := filepath.Glob("/var/log/pods/default_" + p.full() + "_*/" + name + "/0.log") // it is well-formed
	require.Len(p.t, files, 1)
	data, err := os.ReadFile(files[0])
	require.NoError(p.t, err)
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		b.WriteString(strings.SplitN(line, " ", 4)[3])
	}
	return b.String()
}

// sandboxes are the ids of the pod's sandboxes that are ready.
func (p *pod) sandboxes() []string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), procs.Patience)
	defer cancel()
	resp, err := p.h.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		State:         &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{"io.kubernetes.pod.name": p.full()},
	}})
	require.NoError(p.t, err)
	var ids []string
	for _, s := range resp.Items {
		ids = append(ids, s.Id)
	}
	return ids
}
