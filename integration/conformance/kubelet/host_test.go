// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/crinode"
	"github.com/shimyard/shimyard/integration/conformance/procs"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// patience is how long a kubelet may take for something, also where the machine has other things to do.
const patience = 3 * time.Minute

// host is a kubelet over the daemon under test.
type host struct {
	*crinode.Node
	client *client.Client

	site *suite.Site
	cmd  *exec.Cmd
	done chan struct{} // closed when the kubelet that was started last has ended
}

var shared struct {
	sync.Once
	host *host
	err  error
}

// theHost is the one of all tests, which run one after the other.
func theHost(t *testing.T) *host {
	t.Helper()
	site := suite.Attach(t)
	shared.Do(func() { shared.host, shared.err = newHost(site) })
	require.NoError(t, shared.err)
	return shared.host
}

func TestMain(m *testing.M) {
	code := m.Run()
	if h := shared.host; h != nil {
		for _, err := range []error{
			errors.Wrap(h.end(syscall.SIGTERM), "kubelet"), errors.Wrap(h.Daemon.Stop(), "containerd"),
		} {
			if err != nil {
				os.Stderr.WriteString(err.Error() + "\n")
				code = 1
			}
		}
	}
	os.Exit(code)
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
	h := &host{Node: n, site: site}
	if h.client, err = client.New(n.Address, client.WithDefaultNamespace("k8s.io")); err != nil {
		return nil, errors.Wrap(err, "cannot reach the daemon")
	}
	return h, h.start(ctx)
}

// start starts kubelet and returns once it is healthy.
func (h *host) start(ctx context.Context) error {
	log, err := h.site.Log("kubelet.log")
	if err != nil {
		return err
	}
	defer log.Close()
	h.cmd = h.site.Command(context.WithoutCancel(ctx), log, h.site.Program("kubelet"), "--config="+configFile,
		"--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki", "--v=2")
	if err := h.cmd.Start(); err != nil {
		return errors.Wrap(err, "cannot start kubelet")
	}
	h.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // its log tells
		close(done)
	}(h.cmd, h.done)
	for end := time.Now().Add(patience); ; time.Sleep(procs.Tick) {
		if _, err = h.pods(); err == nil && healthy() {
			return nil
		}
		select {
		case <-h.done:
			return errors.New("kubelet ended instead of serving, see kubelet.log")
		default:
		}
		if time.Now().After(end) {
			return errors.Errorf("kubelet is not healthy (%v), see kubelet.log", err)
		}
	}
}

func healthy() bool {
	resp, err := http.Get("http://127.0.0.1:10248/healthz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// end ends kubelet and waits until it is gone.
func (h *host) end(sig syscall.Signal) error {
	if err := h.cmd.Process.Signal(sig); err != nil {
		return errors.Wrap(err, "cannot signal kubelet")
	}
	select {
	case <-h.done:
		return nil
	case <-time.After(procs.Patience):
		_ = h.cmd.Process.Kill()
		<-h.done
		return errors.Errorf("kubelet did not end on %v within %v", sig, procs.Patience)
	}
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
