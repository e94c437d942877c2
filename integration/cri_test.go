// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// criConfig keeps CRI in the daemon's directory; the test's image is also the
// pause image.
const criConfig = `
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '` + imageName + `'
[plugins.'io.containerd.cri.v1.runtime']
cdi_spec_dirs = []
enable_unprivileged_ports = false
enable_unprivileged_icmp = false
netns_mounts_under_state_dir = true
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{{.Dir}}/cni']
conf_dir = '{{.Dir}}/cni'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
Root = '{{.Dir}}/runc'
`

const criNS = "k8s.io"

// pod is a pod with host networking, which needs no CNI.
type pod struct {
	n      *node
	rt     cri.RuntimeServiceClient
	config *cri.PodSandboxConfig
	id     string
}

// newCRINode is a node that serves CRI. Its pods run the pause image with the
// command of the test's image.
func newCRINode(t *testing.T, changes ...change) *node {
	t.Helper()
	n := newNode(t, append([]change{func(o *daemon.Options) {
		o.Plugins = []string{"cri"}
		o.Extra = criConfig
	}}, changes...)...)
	n.importImage(n.context(criNS))
	n.criClient()
	return n
}

// criClient waits until CRI has recovered what it knew before a restart.
func (n *node) criClient() cri.RuntimeServiceClient {
	n.t.Helper()
	conn, ok := n.Client().Conn().(grpc.ClientConnInterface)
	require.True(n.t, ok)
	rt := cri.NewRuntimeServiceClient(conn)
	require.Eventually(n.t, func() bool {
		_, err := rt.Version(n.ctx, &cri.VersionRequest{})
		return err == nil
	}, patience, tick, "waiting for CRI")
	return rt
}

func (n *node) runPod(name string) *pod {
	n.t.Helper()
	p := &pod{n: n, rt: n.criClient(), config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name + "-uid"},
		LogDirectory: filepath.Join(n.Dir, "logs"),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: n.Cgroup(),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Network: cri.NamespaceMode_NODE,
			}},
		},
	}}
	resp, err := p.rt.RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: p.config})
	require.NoError(n.t, err)
	p.id = resp.PodSandboxId
	return p
}

// start creates and starts a container in the pod.
func (p *pod) start(name string, command ...string) string {
	p.n.t.Helper()
	return p.startLimited(name, nil, command...)
}

// startLimited is start of a container with limits.
func (p *pod) startLimited(name string, limits *cri.LinuxContainerResources, command ...string) string {
	p.n.t.Helper()
	id, err := p.tryStart(name, limits, command...)
	require.NoError(p.n.t, err)
	return id
}

// tryStart is startLimited, of a container that may fail to start.
func (p *pod) tryStart(name string, limits *cri.LinuxContainerResources, command ...string) (id string, err error) {
	p.n.t.Helper()
	created, err := p.rt.CreateContainer(p.n.ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name},
			Image:    &cri.ImageSpec{Image: imageName},
			Command:  command,
			LogPath:  name + ".log",
			Linux:    &cri.LinuxContainerConfig{Resources: limits},
		},
	})
	require.NoError(p.n.t, err)
	_, err = p.rt.StartContainer(p.n.ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId})
	return created.ContainerId, err
}

func (p *pod) status(id string) *cri.ContainerStatus {
	p.n.t.Helper()
	resp, err := p.rt.ContainerStatus(p.n.ctx, &cri.ContainerStatusRequest{ContainerId: id})
	require.NoError(p.n.t, err)
	return resp.Status
}

func (p *pod) exec(id string, command ...string) *cri.ExecSyncResponse {
	p.n.t.Helper()
	resp, err := p.rt.ExecSync(p.n.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: command})
	require.NoError(p.n.t, err)
	return resp
}

// remove stops and removes the pod with all that is in it.
func (p *pod) remove() {
	p.n.t.Helper()
	_, err := p.rt.StopPodSandbox(p.n.ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	require.NoError(p.n.t, err)
	_, err = p.rt.RemovePodSandbox(p.n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	require.NoError(p.n.t, err)
}

func TestPod(t *testing.T) {
	t.Parallel()
	n := newCRINode(t)
	p := n.runPod("pod")
	long := p.start("long", "sleep", "1000000")
	short := p.start("short", "sh", "-c", "exit 3")
	require.Eventually(t, func() bool { return p.status(short).State == cri.ContainerState_CONTAINER_EXITED }, patience,
		tick)
	require.EqualValues(t, 3, p.status(short).ExitCode)

	// The containers of a pod share the pod's shim.
	shim := n.shimPid(criNS, p.id)
	require.Len(t, n.shims(), 1)

	out := p.exec(long, "sh", "-c", "echo out; echo err >&2; exit 7")
	require.Equal(t, "out\n", string(out.Stdout))
	require.Equal(t, "err\n", string(out.Stderr))
	require.EqualValues(t, 7, out.ExitCode)
	stats, err := p.rt.ContainerStats(n.ctx, &cri.ContainerStatsRequest{ContainerId: long})
	require.NoError(t, err)
	require.NotZero(t, stats.Stats.GetMemory().GetWorkingSetBytes().GetValue())

	_, err = p.rt.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: long})
	require.NoError(t, err)
	require.EqualValues(t, 137, p.status(long).ExitCode)
	for _, id := range []string{long, short} {
		_, err = p.rt.RemoveContainer(n.ctx, &cri.RemoveContainerRequest{ContainerId: id})
		require.NoError(t, err)
	}
	require.Equal(t, shim, n.shimPid(criNS, p.id), "the pod goes on")
	p.remove()
	_, err = p.rt.PodSandboxStatus(n.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	require.Equal(t, codes.NotFound, status.Code(err))
}

// A pod goes on over a restart, and over a swap to stock containerd and back.
func TestPodOverRestart(t *testing.T) {
	t.Parallel()
	needRoot(t)
	ours, stockBinary := kit.daemon, tool(t, kit.Stock)
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newCRINode(t)
			p := n.runPod("pod")
			id := p.start("long", "sleep", "1000000")
			for _, binary := range []string{ours, stockBinary, ours} {
				end(n)
				n.Swap(binary)
				n.Run()
				p.rt = n.criClient()
				require.Equal(t, cri.ContainerState_CONTAINER_RUNNING, p.status(id).State)
				require.Equal(t, "yes\n", string(p.exec(id, "echo", "yes").Stdout))
			}
			other := p.start("other", "sh", "-c", "exit 4")
			require.Eventually(t, func() bool { return p.status(other).State == cri.ContainerState_CONTAINER_EXITED },
				patience, tick)
			require.EqualValues(t, 4, p.status(other).ExitCode)
			p.remove()
		})
	}
}
