// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/integration/internal/report"
)

// criSteps are the calls that a kubelet makes for a pod with one container, from its start to its end.
var criSteps = []string{
	"RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox",
	"RemovePodSandbox",
}

// cri times the life of pods through CRI, one after the other and some at once.
func (b *bench) cri() {
	section := "Pods through CRI: host network, one container, each call"
	rows := map[string]*report.Row{}
	for _, step := range criSteps {
		rows[step] = b.results.Add(report.Row{Section: section, Name: step, Unit: "ms"})
	}
	whole := b.results.Add(report.Row{Section: section, Name: "all calls of a pod", Unit: "ms",
		Brief: "a pod through CRI, from its start to its removal"})
	rate := b.results.Add(report.Row{
		Section: section, Name: fmt.Sprintf("pods a second, from start to end, %d at once", podsAtOnce), Unit: "/s", More: true,
	})
	nodes := []*criBench{b.startCRI(b.lenient, report.Stock, tool(b.t, kit.Stock)), b.startCRI(b.t, report.Ours, kit.daemon)}
	const warm = 2
	for round := range warm + b.pods {
		for _, n := range inTurn(nodes, round) {
			took, err := n.pod(fmt.Sprint("pod-", round))
			require.NoError(b.t, err)
			if round < warm {
				continue
			}
			var sum time.Duration
			for i, step := range criSteps {
				rows[step].Sample(n.side, millis(took[i]))
				sum += took[i]
			}
			whole.Sample(n.side, millis(sum))
		}
	}
	for pass := range b.passes {
		for _, n := range inTurn(nodes, pass) {
			rate.Sample(n.side, n.podRate(pass, b.pods))
		}
	}
	for _, n := range nodes {
		n.Stop()
	}
}

const podsAtOnce = 4

// inTurn are the things in the order of a round: each is first as often as the others.
func inTurn[T any](all []T, round int) []T {
	at := round % len(all)
	return append(append([]T{}, all[at:]...), all[:at]...)
}

// criBench is a daemon that serves CRI.
type criBench struct {
	*benchNode
	rt cri.RuntimeServiceClient
}

func (b *bench) startCRI(tb testing.TB, side report.Side, binary string) *criBench {
	n := newNodeOn(b.t, tb, daemon.Options{
		Binary: binary, Path: []string{filepath.Dir(kit.shim), filepath.Dir(kit.runc)}, Parent: b.dir,
		WarmIdle: "1m", Plugins: []string{"cri"}, Extra: criConfig,
	})
	n.importImage(n.context(criNS))
	return &criBench{benchNode: &benchNode{node: n, side: side}, rt: n.criClient()}
}

// pod runs one from its start to its end, and says how long each call took.
func (n *criBench) pod(name string) (took []time.Duration, err error) {
	ctx := n.context(criNS)
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name + "-uid"},
		LogDirectory: filepath.Join(n.Dir, "logs"),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: n.Cgroup(),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
			},
		},
	}
	container := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "one"}, Image: &cri.ImageSpec{Image: imageName},
		Command: []string{"sleep", "1000000"}, LogPath: "one.log",
	}
	var pod, id string
	for _, call := range []func() error{
		func() error {
			r, err := n.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
			pod = r.GetPodSandboxId()
			return err
		},
		func() error {
			r, err := n.rt.CreateContainer(ctx, &cri.CreateContainerRequest{
				PodSandboxId: pod, SandboxConfig: sandbox, Config: container,
			})
			id = r.GetContainerId()
			return err
		},
		func() error {
			_, err := n.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		},
		func() error { // with no time to end by itself, which it would not
			_, err := n.rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		},
		func() error {
			_, err := n.rt.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		},
		func() error {
			_, err := n.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		},
		func() error {
			_, err := n.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		},
	} {
		begin := time.Now()
		if err := call(); err != nil {
			return took, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

// podRate is how many pods a second are run, some at once.
func (n *criBench) podRate(pass, count int) float64 {
	var g errgroup.Group
	g.SetLimit(podsAtOnce)
	begin := time.Now()
	for i := range count {
		g.Go(func() error {
			_, err := n.pod(fmt.Sprintf("rate-%d-%d", pass, i))
			return err
		})
	}
	require.NoError(n.t, g.Wait())
	return float64(count) / time.Since(begin).Seconds()
}
