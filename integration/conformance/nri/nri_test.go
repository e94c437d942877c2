// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shimyard/shimyard/integration/conformance/crinode"
	"github.com/shimyard/shimyard/integration/conformance/procs"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

var shared struct {
	sync.Once
	node *crinode.Node
	err  error
}

// node is the daemon of all tests. They run one after the other.
func node(t *testing.T) *crinode.Node {
	t.Helper()
	site := suite.Attach(t)
	shared.Do(func() { shared.node, shared.err = crinode.Start(context.Background(), site, Config) })
	require.NoError(t, shared.err)
	return shared.node
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.node != nil {
		if err := shared.node.Daemon.Stop(); err != nil {
			code = 1
		}
	}
	os.Exit(code)
}

func TestEventsComeInOrder(t *testing.T) {
	n := node(t)
	p, _ := connect(t, "10")
	pod := n.RunPod(t, "order")
	id := pod.Start("c", "sleep", "1000000")
	_, err := n.Runtime.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
	})
	require.NoError(t, err)
	require.Equal(t, "134217728", n.MemoryLimit(t, id))
	n.Stop(t, id)
	_, err = n.Runtime.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: id})
	require.NoError(t, err)
	pod.Remove()
	require.Equal(t, []string{
		"RunPodSandbox", "CreateContainer c", "PostCreateContainer c", "StartContainer c", "PostStartContainer c",
		"UpdateContainer c", "PostUpdateContainer c", "StopContainer c", "RemoveContainer c", "StopPodSandbox",
		"RemovePodSandbox",
	}, p.heard())
}

func TestExitIsTold(t *testing.T) {
	n := node(t)
	p, _ := connect(t, "10")
	id := n.RunPod(t, "exit").Start("c", "sh", "-c", "exit 3")
	p.await("StopContainer c")
	require.Eventually(t, func() bool { return n.Status(t, id).State == cri.ContainerState_CONTAINER_EXITED },
		crinode.Patience, crinode.Tick)
	require.EqualValues(t, 3, n.Status(t, id).ExitCode)
}

func TestPluginsAreAskedInTheOrderOfTheirIndex(t *testing.T) {
	n := node(t)
	var mu sync.Mutex
	var asked []string
	as := func(name string) func(*plugin) {
		return func(p *plugin) {
			p.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, name)
				return nil, nil, nil
			}
		}
	}
	connect(t, "20", as("second"))
	connect(t, "10", as("first"))
	n.RunPod(t, "index").Start("c", "sleep", "1000000")
	require.Equal(t, []string{"first", "second"}, asked)
}

func TestAdjustmentIsWhatTheContainerGets(t *testing.T) {
	n := node(t)
	require.NoError(t, os.MkdirAll("/var/lib/nri-test", 0o755))
	require.NoError(t, os.WriteFile("/var/lib/nri-test/file", []byte("from the node\n"), 0o644))
	connect(t, "10", func(p *plugin) {
		p.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			a.AddEnv("ADJUSTED", "yes")
			a.AddMount(&api.Mount{Source: "/var/lib/nri-test", Destination: "/adjusted", Type: "bind",
				Options: []string{"rbind", "ro"}})
			a.SetLinuxMemoryLimit(96 << 20)
			a.AddRlimit("RLIMIT_NOFILE", 555, 444)
			return a, nil, nil
		}
	})
	id := n.RunPod(t, "adjust").Start("c", "sleep", "1000000")
	require.Equal(t, "yes", n.Exec(t, id, "echo $ADJUSTED"))
	require.Equal(t, "from the node", n.Exec(t, id, "cat /adjusted/file"))
	require.Equal(t, "100663296", n.MemoryLimit(t, id))
	require.Equal(t, "444", n.Exec(t, id, "ulimit -n"))
}

func TestRefusedContainerLeavesNothing(t *testing.T) {
	n := node(t)
	refuse := true
	p, _ := connect(t, "10", func(p *plugin) {
		p.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			if refuse {
				return nil, nil, errors.New("not on this node")
			}
			return nil, nil, nil
		}
	})
	pod := n.RunPod(t, "refuse")
	_, err := pod.Create("c", "true")
	require.ErrorContains(t, err, "not on this node")
	list, err := n.Runtime.ListContainers(t.Context(),
		&cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod.ID}})
	require.NoError(t, err)
	require.Empty(t, list.Containers)
	refuse = false
	id := pod.Start("c", "sleep", "1000000") // the name is free again, and the pod's shim serves
	require.Equal(t, "yes", n.Exec(t, id, "echo yes"))
	require.NotContains(t, p.heard(), "RemovePodSandbox")
}

func TestCreateUpdatesAnotherContainer(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "other")
	first := pod.Start("first", "sleep", "1000000")
	connect(t, "10", func(p *plugin) {
		p.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			u := &api.ContainerUpdate{}
			u.SetContainerId(first)
			u.SetLinuxMemoryLimit(80 << 20)
			return nil, []*api.ContainerUpdate{u}, nil
		}
	})
	second := pod.Start("second", "sleep", "1000000")
	require.Equal(t, "83886080", n.MemoryLimit(t, first))
	require.Equal(t, "268435456", n.MemoryLimit(t, second))
}

func TestUpdateIsOverridden(t *testing.T) {
	n := node(t)
	connect(t, "10", func(p *plugin) {
		p.update = func(c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
			u := &api.ContainerUpdate{}
			u.SetContainerId(c.Id)
			u.SetLinuxMemoryLimit(r.GetMemory().GetLimit().GetValue() / 2)
			return []*api.ContainerUpdate{u}, nil
		}
	})
	id := n.RunPod(t, "override").Start("c", "sleep", "1000000")
	_, err := n.Runtime.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
	})
	require.NoError(t, err)
	require.Equal(t, "67108864", n.MemoryLimit(t, id))
}

func TestUnsolicitedUpdate(t *testing.T) {
	n := node(t)
	p, _ := connect(t, "10")
	id := n.RunPod(t, "unsolicited").Start("c", "sleep", "1000000")
	good, bad := &api.ContainerUpdate{}, &api.ContainerUpdate{}
	good.SetContainerId(id)
	good.SetLinuxMemoryLimit(112 << 20)
	bad.SetContainerId("there-is-no-such-container")
	bad.SetLinuxMemoryLimit(112 << 20)
	failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{good})
	require.NoError(t, err)
	require.Empty(t, failed)
	require.Equal(t, "117440512", n.MemoryLimit(t, id))
	n.Stop(t, id)
	_, err = p.stub.UpdateContainers([]*api.ContainerUpdate{bad})
	require.NoError(t, err)
}

// NRI takes evictions from a plugin and, as of the version that containerd has, does not hand them on. The container
// that is to be evicted must not come to harm by that.
func TestEvictionIsTakenAndNotHandedOn(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "evict")
	first := pod.Start("first", "sleep", "1000000")
	asked := 0
	connect(t, "10", func(p *plugin) {
		p.evict = func() []*api.ContainerEviction {
			asked++
			return []*api.ContainerEviction{{ContainerId: first, Reason: "room is needed"}}
		}
	})
	second := pod.Start("second", "sleep", "1000000")
	require.Equal(t, 1, asked)
	require.Equal(t, "yes", n.Exec(t, first, "echo yes"))
	require.Equal(t, "yes", n.Exec(t, second, "echo yes"))
}

func TestPluginThatLeavesInTheMiddleIsForgotten(t *testing.T) {
	n := node(t)
	connect(t, "10", func(p *plugin) {
		p.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			go p.stub.Stop()
			<-make(chan struct{}) // never answers
			return nil, nil, nil
		}
	})
	pod := n.RunPod(t, "leave")
	id := pod.Start("c", "sleep", "1000000")
	require.Equal(t, "yes", n.Exec(t, id, "echo yes"))
}

// What a plugin is told when it comes back after a restart of the daemon is what there was before, with the same
// pids.
func TestSynchronizeAfterRestart(t *testing.T) {
	for name, end := range map[string]func(*crinode.Node) error{
		"stop": func(n *crinode.Node) error { return n.Daemon.Stop() },
		"kill": func(n *crinode.Node) error { return n.Daemon.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			n := node(t)
			before, _ := connect(t, "10")
			pod := n.RunPod(t, "sync-"+name)
			running := pod.Start("running", "sleep", "1000000")
			created, err := pod.Create("created", "sleep", "1000000")
			require.NoError(t, err)
			exited := pod.Start("exited", "true")
			before.await("StopContainer exited") // which is told before CRI takes the container for exited
			require.Eventually(t, func() bool {
				return n.Status(t,
					exited).State == cri.ContainerState_CONTAINER_EXITED
			},
				crinode.Patience, crinode.Tick)
			_, was := connect(t, "20")

			restart(t, n, end)
			after, now := connect(t, "10")
			require.Len(t, now.pods, 1)
			require.Equal(t, pod.ID, now.pods[0].Id)
			require.Equal(t, was.pods[0].Pid, now.pods[0].Pid)
			require.Equal(t, states(was), states(now))
			require.Equal(t, map[string]api.ContainerState{
				running: api.ContainerState_CONTAINER_RUNNING, created: api.ContainerState_CONTAINER_CREATED,
			}, states(now))
			require.Equal(t, pids(was), pids(now))
			require.Equal(t, cri.ContainerState_CONTAINER_EXITED, n.Status(t, exited).State)

			_, err = n.Runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: created})
			require.NoError(t, err)
			n.Stop(t, running)
			require.Equal(t, []string{"StartContainer created", "PostStartContainer created", "StopContainer running"},
				after.heard())
		})
	}
}

// A container that exits while the daemon is down is not told of as if it ran, and its exit code is not lost.
func TestExitWhileTheDaemonIsDown(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "down")
	id := pod.Start("c", "sh", "-c", "trap 'exit 7' TERM; while true; do sleep 0.1; done")
	connect(t, "10")
	resp, err := n.Runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	require.NoError(t, err)
	pid := infoPid(t, resp.Info)
	procs.Trapped(t, pid, unix.SIGTERM)
	restart(t, n, func(n *crinode.Node) error {
		if err := n.Daemon.Kill(); err != nil {
			return err
		}
		procs.Signal(t, pid, unix.SIGTERM)
		procs.Gone(t, pid)
		return nil
	})
	_, now := connect(t, "10")
	require.Empty(t, now.containers)
	require.Equal(t, cri.ContainerState_CONTAINER_EXITED, n.Status(t, id).State)
	require.EqualValues(t, 7, n.Status(t, id).ExitCode)
}
