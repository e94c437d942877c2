// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package buildkit

import (
	"context"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

const (
	// answer is how long a build may take, also where the machine has other things to do.
	answer = 4 * time.Minute

	config = "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n"
	socket = "unix:///run/buildkit/buildkitd.sock"
)

// host is a buildkitd over the daemon under test.
type host struct {
	containerd *suite.Daemon
	client     *client.Client

	site      *suite.Site
	buildkitd *suite.Service
}

var shared suite.Shared[host]

// theHost is the one of all tests, which run one after the other. When the test ends, nothing of its builds is left.
func theHost(t *testing.T) *host {
	t.Helper()
	h := shared.Of(t, newHost)
	t.Cleanup(func() { h.isClean(t) })
	return h
}

func TestMain(m *testing.M) {
	shared.Main(m, func(h *host) []*suite.Service { return []*suite.Service{h.buildkitd, h.containerd.Service} })
}

func newHost(site *suite.Site) (*host, error) {
	ctx := context.Background()
	d, err := site.Daemon(ctx, suite.DaemonOptions{Config: config})
	if err != nil {
		return nil, err
	}
	h := &host{containerd: d, site: site}
	if h.client, err = client.New(d.Address, client.WithDefaultNamespace(Namespace)); err != nil {
		return nil, errors.Wrap(err, "cannot reach the daemon")
	}
	serves := func(ctx context.Context) error { return h.buildctl(ctx, "debug", "workers").Run() }
	h.buildkitd = site.Service("buildkitd", serves, site.Program("buildkitd"), "--addr="+socket,
		"--oci-worker=false", "--containerd-worker=true", "--containerd-worker-addr="+d.Address,
		"--containerd-worker-net=host")
	return h, h.buildkitd.Start(ctx)
}

// restart ends the daemon under buildkitd and starts it again.
func (h *host) restart(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if sig == syscall.SIGKILL {
		require.NoError(t, h.containerd.Kill())
	} else {
		require.NoError(t, h.containerd.Stop())
	}
	require.NoError(t, h.containerd.Start(t.Context()))
}

func (h *host) buildctl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, h.site.Program("buildctl"), append([]string{"--addr=" + socket}, args...)...)
}
