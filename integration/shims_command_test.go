// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/manager/inspect"
	"github.com/shimyard/shimyard/plugin/shims"
)

// askShims runs `containerd shims` against the node's daemon.
func (n *node) askShims(args ...string) (out string, code int, failure string) {
	n.t.Helper()
	cmd := exec.Command(kit.daemon, append([]string{"shims", "-a", n.Address()}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	data, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		require.NoError(n.t, err)
	}
	return string(data), cmd.ProcessState.ExitCode(), stderr.String()
}

// TestShimsCommand: a person sees all shims with one of them stalled, is told which one it is, and gets the stacks of another.
func TestShimsCommand(t *testing.T) {
	n := newNode(t)
	well := n.run("well")
	n.run("ill")
	out, code, failure := n.askShims("check")
	require.Zero(t, code, "%s%s", out, failure)

	shim := n.stall("ill")
	t.Cleanup(func() { _ = unix.Kill(shim, unix.SIGCONT) })
	_, err := n.taskOf("ill").Pids(n.ctx)
	require.Error(t, err)
	require.Eventually(t, func() bool {
		out, code, _ = n.askShims("check")
		return code == shims.ExitProblem && strings.Contains(out, testNS+"/ill: its shim")
	}, patience, tick)
	require.NotContains(t, out, "well")

	out, code, failure = n.askShims("ls", "-o", "json", "-n", testNS)
	require.Zero(t, code, failure)
	var list inspect.ListResponse
	require.NoError(t, json.Unmarshal([]byte(out), &list))
	require.Len(t, list.Instances, 2)
	require.Equal(t, inspect.StateUnresponsive, list.Instances[0].State)
	require.Equal(t, shim, list.Instances[0].Shim.Pid)
	require.Equal(t, inspect.StateRunning, list.Instances[1].State)

	out, code, failure = n.askShims("inspect", "wel")
	require.Zero(t, code, failure)
	require.Contains(t, out, `"status": "RUNNING"`)
	out, code, failure = n.askShims("dump", "well")
	require.Zero(t, code, failure)
	require.True(t, strings.HasPrefix(out, "goroutine "), out)
	require.Contains(t, out, "\n\t")
	_, code, failure = n.askShims("dump", "ill")
	require.Equal(t, shims.ExitUnsupported, code, failure)
	_, code, _ = n.askShims("inspect", "nobody")
	require.Equal(t, shims.ExitNotFound, code)

	require.NoError(t, unix.Kill(shim, unix.SIGCONT))
	n.answers("ill").finish()
	well.finish()
}

// TestMetricsEndpoint: Prometheus gets the metrics where containerd serves its own.
func TestMetricsEndpoint(t *testing.T) {
	address := freeAddress(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	n := newNode(t, func(o *daemon.Options) {
		o.Extra += fmt.Sprintf("\n[plugins.'io.containerd.server.v1.metrics']\n  address = '%s'\n", address)
	})
	j := n.run("one")
	require.Eventually(t, func() bool {
		r, err := client.Get("http://" + address + "/v1/metrics")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		want := fmt.Sprintf(`shimyard_instances{kind="task",namespace="%s",runtime="%s",state="running"} 1`, testNS, runcName)
		series := regexp.MustCompile(`(?m)^shimyard_`).FindAll(body, -1)
		require.Less(t, len(series), 2000)
		return strings.Contains(string(body), want) && strings.Contains(string(body), "shimyard_info{")
	}, patience, tick)
	j.finish()
}

// TestShimsCommandAgainstStock: it says which daemon it has met.
func TestShimsCommandAgainstStock(t *testing.T) {
	n := newNode(t, func(o *daemon.Options) { o.Binary = tool(t, kit.Stock) })
	_, code, failure := n.askShims("ls")
	require.Equal(t, shims.ExitUnavailable, code)
	require.Contains(t, failure, "containerd's own runtime")
}
