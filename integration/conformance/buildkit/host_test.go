// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package buildkit

import (
	"context"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/procs"
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

	site *suite.Site
	cmd  *exec.Cmd
	done chan struct{} // closed when the buildkitd that was started last has ended
}

var shared struct {
	sync.Once
	host *host
	err  error
}

// theHost is the one of all tests, which run one after the other. When the test ends, nothing of its builds is left.
func theHost(t *testing.T) *host {
	t.Helper()
	site := suite.Attach(t)
	shared.Do(func() { shared.host, shared.err = newHost(site) })
	require.NoError(t, shared.err)
	t.Cleanup(func() { shared.host.isClean(t) })
	return shared.host
}

func TestMain(m *testing.M) {
	code := m.Run()
	if h := shared.host; h != nil {
		for _, err := range []error{
			errors.Wrap(h.end(syscall.SIGTERM), "buildkitd"), errors.Wrap(h.containerd.Stop(), "containerd"),
		} {
			if err != nil {
				os.Stderr.WriteString(err.Error() + "\n")
				code = 1
			}
		}
	}
	os.Exit(code)
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
	return h, h.start(ctx)
}

// start starts buildkitd and returns once it answers.
func (h *host) start(ctx context.Context) error {
	log, err := h.site.Log("buildkitd.log")
	if err != nil {
		return err
	}
	defer log.Close()
	h.cmd = h.site.Command(context.WithoutCancel(ctx), log, h.site.Program("buildkitd"), "--addr="+socket,
		"--oci-worker=false", "--containerd-worker=true", "--containerd-worker-addr="+h.containerd.Address,
		"--containerd-worker-net=host")
	if err := h.cmd.Start(); err != nil {
		return errors.Wrap(err, "cannot start buildkitd")
	}
	h.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // its log tells
		close(done)
	}(h.cmd, h.done)
	for end := time.Now().Add(procs.Patience); ; time.Sleep(procs.Tick) {
		if err = h.buildctl(ctx, "debug", "workers").Run(); err == nil {
			return nil
		}
		select {
		case <-h.done:
			return errors.New("buildkitd ended instead of serving, see buildkitd.log")
		default:
		}
		if time.Now().After(end) {
			return errors.Wrap(err, "buildkitd does not serve, see buildkitd.log")
		}
	}
}

// end ends buildkitd and waits until it is gone.
func (h *host) end(sig syscall.Signal) error {
	if err := h.cmd.Process.Signal(sig); err != nil {
		return errors.Wrap(err, "cannot signal buildkitd")
	}
	select {
	case <-h.done:
		return nil
	case <-time.After(procs.Patience):
		_ = h.cmd.Process.Kill()
		<-h.done
		return errors.Errorf("buildkitd did not end on %v within %v", sig, procs.Patience)
	}
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
