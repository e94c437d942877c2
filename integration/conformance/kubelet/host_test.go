// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/crinode"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// patience is how long a kubelet may take for something, also where the machine has other things to do.
const patience = 3 * time.Minute

// host is a kubelet over the daemon under test.
type host struct {
	*crinode.Node
	client  *client.Client
	kubelet *suite.Service
}

var shared suite.Shared[host]

// theHost is the one of all tests, which run one after the other.
func theHost(t *testing.T) *host {
	t.Helper()
	return shared.Of(t, newHost)
}

func TestMain(m *testing.M) {
	shared.Main(m, func(h *host) []*suite.Service { return []*suite.Service{h.kubelet, h.Daemon.Service} })
}

const configFile = "/etc/kubernetes/kubelet.json"

func newHost(site *suite.Site) (*host, error) {
	ctx := context.Background()
	if err := os.MkdirAll(Manifests, 0o755); err != nil {
		return nil, errors.Wrap(err, "cannot make a directory for manifests")
	}
	if err := os.WriteFile(configFile, []byte(Config), 0o644); err != nil {
		return nil, errors.Wrap(err, "cannot write kubelet's config")
	}
	n, err := crinode.Start(ctx, site, "version = 3\n")
	if err != nil {
		return nil, err
	}
	h := &host{Node: n}
	if h.client, err = client.New(n.Address, client.WithDefaultNamespace("k8s.io")); err != nil {
		return nil, errors.Wrap(err, "cannot reach the daemon")
	}
	h.kubelet = site.Service("kubelet", h.serves, site.Program("kubelet"), "--config="+configFile,
		"--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki", "--v=2")
	h.kubelet.Within = patience
	return h, h.kubelet.Start(ctx)
}

// serves tells whether kubelet is healthy and knows its pods.
func (h *host) serves(context.Context) error {
	if _, err := h.pods(); err != nil {
		return err
	}
	resp, err := http.Get("http://127.0.0.1:10248/healthz")
	if err != nil {
		return errors.Wrap(err, "cannot ask kubelet whether it is healthy")
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.Errorf("kubelet says that it is not healthy: %s", resp.Status)
	}
	return nil
}

// daemonEnds ends the daemon, daemonStarts starts it again.
func (h *host) daemonEnds(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if sig == syscall.SIGKILL {
		require.NoError(t, h.Daemon.Kill())
	} else {
		require.NoError(t, h.Daemon.Stop())
	}
}

func (h *host) daemonStarts(t *testing.T) {
	t.Helper()
	require.NoError(t, h.Daemon.Start(t.Context()))
	require.NoError(t, h.Node.Ready(t.Context()))
}

// restart restarts the daemon.
func (h *host) restart(t *testing.T, sig syscall.Signal) {
	t.Helper()
	h.daemonEnds(t, sig)
	h.daemonStarts(t)
}

// podStatus is as much of what kubelet says of a pod as is looked at.
type podStatus struct {
	Metadata struct{ Name string }
	Status   struct {
		Phase                 string
		PodIP                 string
		ContainerStatuses     []containerStatus
		InitContainerStatuses []containerStatus
	}
}

type containerStatus struct {
	Name, ContainerID string
	Ready             bool
	RestartCount      int
	State, LastState  struct {
		Running    *struct{ StartedAt string }
		Terminated *struct {
			ExitCode int
			Reason   string
		}
	}
}

// pods are kubelet's, by name.
func (h *host) pods() (map[string]podStatus, error) {
	resp, err := http.Get("http://127.0.0.1:10255/pods")
	if err != nil {
		return nil, errors.Wrap(err, "cannot ask kubelet for its pods")
	}
	defer resp.Body.Close()
	var list struct{ Items []podStatus }
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, errors.Wrapf(err, "cannot read what kubelet says of its pods (%s)", resp.Status)
	}
	pods := map[string]podStatus{}
	for _, p := range list.Items {
		pods[p.Metadata.Name] = p
	}
	return pods, nil
}
