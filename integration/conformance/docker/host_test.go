// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

const (
	// answer is how long the client may take, also where the machine has other things to do.
	answer = 4 * time.Minute

	// The machine may have another client in its PATH.
	program = "/usr/bin/docker"
)

// host is a dockerd over the daemon under test.
type host struct {
	containerd *suite.Daemon
	dockerd    *suite.Service
}

var shared suite.Shared[host]

// theHost is the one of all tests. They run one after the other.
func theHost(t *testing.T) *host {
	t.Helper()
	return shared.Of(t, newHost)
}

func TestMain(m *testing.M) {
	shared.Main(m, func(h *host) []*suite.Service { return []*suite.Service{h.dockerd, h.containerd.Service} })
}

func newHost(site *suite.Site) (*host, error) {
	ctx := context.Background()
	const config = "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n"
	d, err := site.Daemon(ctx, suite.DaemonOptions{Config: config})
	if err != nil {
		return nil, err
	}
	h := &host{containerd: d}
	h.dockerd = site.Service("dockerd", h.serves, "dockerd", "--containerd="+d.Address,
		"--live-restore", "--storage-driver=overlay2", "--userland-proxy=false",
		"--exec-opt=native.cgroupdriver=cgroupfs", "--shutdown-timeout=5")
	if err := h.dockerd.Start(ctx); err != nil {
		return nil, err
	}
	out, _, err := h.try(ctx, "pull", Image)
	return h, errors.Wrapf(err, "cannot pull the image: %s", out)
}

func (h *host) serves(ctx context.Context) error {
	_, _, err := h.try(ctx, "version")
	return err
}

// try runs the client and returns what it wrote to stdout, without white space around it, and its exit code.
func (h *host) try(ctx context.Context, args ...string) (string, int, error) {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	err = errors.Wrapf(err, "docker %v: %s", args, stderr.Bytes())
	return strings.TrimSpace(stdout.String()), cmd.ProcessState.ExitCode(), err
}

// docker runs the client, which must succeed.
func (h *host) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, _, err := h.try(t.Context(), args...)
	require.NoError(t, err)
	return out
}

// code runs the client and returns its exit code.
func (h *host) code(t *testing.T, args ...string) int {
	t.Helper()
	_, code, err := h.try(t.Context(), args...)
	require.NotEqual(t, -1, code, "%v", err)
	return code
}

// once runs a container in the foreground and returns what it wrote and its exit code, which is the client's.
func (h *host) once(t *testing.T, command ...string) (string, int) {
	t.Helper()
	out, code, err := h.try(t.Context(), append(append(runArgs("--rm"), Image), command...)...)
	require.NotEqual(t, -1, code, "%v", err)
	return out, code
}

// echo runs a container that says the word.
func (h *host) echo(t *testing.T, word string) {
	t.Helper()
	out, code := h.once(t, "echo", word)
	require.Zero(t, code)
	require.Equal(t, word, out)
}

// runArgs are those of every run. The runc that is built here knows no seccomp.
func runArgs(args ...string) []string {
	return append([]string{"run", "--security-opt=seccomp=unconfined"}, args...)
}

// run starts a container in the background, that is removed when the test ends. options are those before the image.
func (h *host) run(t *testing.T, options []string, command ...string) *container {
	t.Helper()
	args := append(append(runArgs("-d"), options...), Image)
	id := h.docker(t, append(args, command...)...)
	c := &container{t: t, h: h, id: id}
	t.Cleanup(func() { c.remove() })
	return c
}

// shell is run with a script.
func (h *host) shell(t *testing.T, script string, options ...string) *container {
	t.Helper()
	return h.run(t, options, "sh", "-c", script)
}

// tasks are the ids of the tasks that containerd has of dockerd.
func (h *host) tasks(t *testing.T) []string {
	t.Helper()
	c, err := client.New(h.containerd.Address, client.WithDefaultNamespace(Namespace))
	require.NoError(t, err)
	defer c.Close()
	list, err := c.Containers(t.Context())
	require.NoError(t, err)
	ids := []string{}
	for _, one := range list {
		if _, err := one.Task(t.Context(), nil); err == nil {
			ids = append(ids, one.ID())
		}
	}
	return ids
}
