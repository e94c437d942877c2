// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package crinode drives a daemon by CRI, for tests that run in a box: pods with the network of the node, and
// containers of busybox in them.
package crinode

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// Image is the image of all containers.
const Image = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

// Patience is how long a condition is waited for, Tick how often it is looked at.
const (
	Patience = time.Minute
	Tick     = 50 * time.Millisecond
)

// Node is a daemon that serves CRI.
type Node struct {
	*suite.Daemon
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient
}

// Start starts the daemon of a site, with the config, and pulls the image. The daemon ends with the box.
func Start(ctx context.Context, s *suite.Site, config string) (*Node, error) {
	d, err := s.Daemon(ctx, suite.DaemonOptions{Config: config})
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+d.Address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return nil, err
	}
	n := &Node{Daemon: d, Runtime: cri.NewRuntimeServiceClient(conn), Images: cri.NewImageServiceClient(conn)}
	if err := n.Ready(ctx); err != nil {
		return nil, err
	}
	_, err = n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: Image}})
	return n, err
}

// Ready waits until CRI serves, which is later than the daemon does.
func (n *Node) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	for {
		_, err := n.Runtime.Version(ctx, &cri.VersionRequest{})
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(Tick)
	}
}

// Pod is a pod of a test. It is removed when the test ends.
type Pod struct {
	t      testing.TB
	n      *Node
	ID     string
	Config *cri.PodSandboxConfig
}

// RunPod runs one.
func (n *Node) RunPod(t testing.TB, name string) *Pod {
	t.Helper()
	p := &Pod{t: t, n: n, Config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name + "-uid"},
		LogDirectory: "/var/log/pods/" + name,
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}}
	resp, err := n.Runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: p.Config})
	require.NoError(t, err)
	p.ID = resp.PodSandboxId
	t.Cleanup(func() { p.remove(context.Background()) })
	return p
}

// Remove stops and removes the pod with all that is in it.
func (p *Pod) Remove() {
	p.t.Helper()
	p.remove(p.t.Context())
}

func (p *Pod) remove(ctx context.Context) {
	p.t.Helper()
	_, err := p.n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
	require.NoError(p.t, err)
	_, err = p.n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID})
	require.NoError(p.t, err)
}

// Create creates a container.
func (p *Pod) Create(name string, command ...string) (string, error) {
	resp, err := p.n.Runtime.CreateContainer(p.t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: p.ID, SandboxConfig: p.Config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: Image}, Command: command,
			LogPath: name + ".log",
			Linux:   &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 256 << 20}},
		},
	})
	return resp.GetContainerId(), err
}

// Start creates and starts a container.
func (p *Pod) Start(name string, command ...string) string {
	p.t.Helper()
	id, err := p.Create(name, command...)
	require.NoError(p.t, err)
	_, err = p.n.Runtime.StartContainer(p.t.Context(), &cri.StartContainerRequest{ContainerId: id})
	require.NoError(p.t, err)
	return id
}

// Status is that of a container.
func (n *Node) Status(t testing.TB, id string) *cri.ContainerStatus {
	t.Helper()
	resp, err := n.Runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: id})
	require.NoError(t, err)
	return resp.Status
}

// Exec runs a shell's command in a container, and returns what it wrote, trimmed.
func (n *Node) Exec(t testing.TB, id, command string) string {
	t.Helper()
	resp, err := n.Runtime.ExecSync(t.Context(),
		&cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", command}})
	require.NoError(t, err)
	require.Zero(t, resp.ExitCode, "%s", resp.Stderr)
	return strings.TrimSpace(string(resp.Stdout))
}

// Stop stops a container, with a grace period of a second.
func (n *Node) Stop(t testing.TB, id string) {
	t.Helper()
	_, err := n.Runtime.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: id, Timeout: 1})
	require.NoError(t, err)
}

// MemoryLimit is that of a container, as its cgroup has it.
func (n *Node) MemoryLimit(t testing.TB, id string) string {
	t.Helper()
	return n.Exec(t, id, "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes")
}
