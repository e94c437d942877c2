// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

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

// TestShimsCommand: a person sees all shims with one of them stalled, is told which one it is, and gets the stacks of
// another.
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

// TestCheckNamesWhatIsWrong: a shim whose binary was replaced, and a clean-up that something is in the way of, each with
// what it is, and nothing once that is mended.
func TestCheckNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir, path := privateShim(t)
	n := newNode(t, func(o *daemon.Options) { o.Path = []string{dir} })
	old := n.run("old", forever())
	copyFile(t, kit.shim, path+".new")
	require.NoError(t, os.Rename(path+".new", path))
	n.says("check", testNS+"/old: its shim", "runs a binary that was removed or replaced")
	n.run("new", forever()).finish()

	stuck := n.run("stuck", forever())
	held := filepath.Join(n.Bundle(testNS, "stuck"), "held")
	require.NoError(t, os.Mkdir(held, 0o700))
	require.NoError(t, unix.Mount("tmpfs", held, "tmpfs", 0, "size=4k"))
	t.Cleanup(func() { _ = unix.Unmount(held, unix.MNT_DETACH) })
	e := stuck.wait()
	require.NoError(t, unix.Kill(n.shimPid(testNS, "stuck"), unix.SIGKILL))
	require.EqualValues(t, 137, e.code())
	n.says("check", testNS+"/stuck: cleaning up has not succeeded for", held)
	require.NoError(t, unix.Unmount(held, 0))
	stuck.b.awaitGone()
	stuck.b.remove()
	old.finish()
	require.Eventually(t, func() bool {
		out, code, _ := n.askShims("check")
		return code == 0 && out == ""
	}, patience, tick, "something is still wrong")
	require.Contains(t, n.Log(), "cleaned up after task, which had failed before")
}

// says waits until a command has a line with all of the parts.
func (n *node) says(command string, parts ...string) {
	n.t.Helper()
	var out string
	require.Eventually(n.t, func() bool {
		out, _, _ = n.askShims(command)
		for line := range strings.Lines(out) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return true
			}
		}
		return false
	}, patience, tick, "containerd shims %s does not say %q: %s", command, parts, &out)
}

// TestShimsThatGoOn: `logs -f` and `top` go on with what comes, and end when they are told to.
func TestShimsThatGoOn(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("one", forever())
	shim := n.shimPid(testNS, "one")
	for _, c := range []struct {
		args []string
		say  func()
		want string
	}{
		// runc's shim logs its stacks when it gets the signal.
		{[]string{"logs", "-f", "one"}, func() { require.NoError(t, unix.Kill(shim, unix.SIGUSR1)) }, "goroutine "},
		{[]string{"top", "--interval", "50ms"}, func() {}, "\nSHIM-PID"}, // the second table
	} {
		cmd := exec.Command(kit.daemon, append([]string{"shims", "-a", n.Address()}, c.args...)...)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		end := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		c.say()
		var said strings.Builder
		buf := make([]byte, 4096)
		for !strings.Contains(said.String(), c.want) {
			m, err := out.Read(buf)
			said.Write(buf[:m])
			require.NoError(t, err, "%v: %s", c.args, &said)
		}
		require.NoError(t, cmd.Process.Signal(unix.SIGINT))
		_, _ = io.Copy(io.Discard, out)
		require.Error(t, cmd.Wait())
		require.True(t, end.Stop(), "%v does not end", c.args)
	}
	j.finish()
}

// withMetrics makes the daemon serve Prometheus at an address.
func withMetrics(address string) change {
	return func(o *daemon.Options) {
		o.Extra += fmt.Sprintf("\n[plugins.'io.containerd.server.v1.metrics']\n  address = '%s'\n", address)
	}
}

// scrape gets our series, as Prometheus does.
func scrape(t *testing.T, address string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var ours string
	require.Eventually(t, func() bool {
		r, err := client.Get("http://" + address + "/v1/metrics")
		if err != nil {
			return false // not yet
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		ours = strings.Join(regexp.MustCompile(`(?m)^shimyard_.*$`).FindAllString(string(body), -1), "\n")
		return ours != ""
	}, patience, tick)
	return ours
}

// callsIn are the calls to shims that are counted in what was scraped, by method and code. Not Stats: containerd's own
// metrics ask for those at each scrape. Not Connect: a shim that is silent is asked so all the time, in the background.
func callsIn(series string) []string {
	calls := regexp.MustCompile(`(?m)^shimyard_rpcs_total\{.*$`).FindAllString(series, -1)
	return slices.DeleteFunc(calls, func(line string) bool {
		return strings.Contains(line, `method="Stats"`) || strings.Contains(line, `method="Connect"`)
	})
}

// TestMetricsEndpoint: Prometheus gets the metrics where containerd serves its own.
func TestMetricsEndpoint(t *testing.T) {
	address := freeAddress(t)
	n := newNode(t, withMetrics(address))
	j := n.run("one")
	series := scrapeFew(t, address)
	require.Contains(t, series,
		fmt.Sprintf(`shimyard_instances{kind="task",namespace="%s",runtime="%s",state="running"} 1`, testNS, runcName))
	require.Contains(t, series, "shimyard_info{")
	j.finish()
}

// seriesLimit is how many series of ours a scrape has at most, whatever has gone on.
const seriesLimit = 2000

// scrapeFew is scrape, at the end of a run that has used much of what can be counted.
func scrapeFew(t *testing.T, address string) string {
	t.Helper()
	series := scrape(t, address)
	count := strings.Count(series, "\n") + 1
	t.Logf("%d series", count)
	require.Less(t, count, seriesLimit)
	return series
}

// TestNewcomer goes the way that the README shows, on a node with 20 stalled shims: scrape, find one's pod, find what
// is wrong. All of that is there at once, and none of it waits for a shim: in the end each stalled shim was asked only
// by its own client.
func TestNewcomer(t *testing.T) {
	t.Parallel()
	const stalled = 20
	address := freeAddress(t)
	n := newCRINode(t, withMetrics(address))
	p := n.runPod("pod")
	p.start("app", "sleep", "1000000")
	jobs := make([]*job, stalled)
	n.each(stalled, func(i int) (err error) {
		jobs[i], err = n.tryRun(fmt.Sprintf("ill-%02d", i), forever())
		return err
	})
	var shimPids []int
	for _, j := range jobs {
		shimPids = append(shimPids, n.stall(j.ID()))
	}
	defer resume(shimPids)
	n.each(stalled, func(i int) error { // each has left a call unanswered
		if _, err := jobs[i].Pids(n.ctx); err == nil {
			return errors.Errorf("%s answers", jobs[i].ID())
		}
		return nil
	})
	require.Eventually(t, func() bool {
		out, code, _ := n.askShims("check")
		return code == shims.ExitProblem && strings.Count(out, "has not answered for") == stalled
	}, patience, tick)

	before := scrape(t, address)
	require.Contains(t, before, fmt.Sprintf(`shimyard_processes{runtime="%s",state="unresponsive"} %d`, runcName,
		stalled))
	out, code, failure := n.askShims("ls", "-n", criNS)
	require.Zero(t, code, failure)
	require.Equal(t, 2, strings.Count(out, "running"), "the pod and its container: %s", out)
	out, code, failure = n.askShims("ls", "-q", "--state", "unresponsive")
	require.Zero(t, code, failure)
	require.Len(t, strings.Fields(out), stalled)
	_, code, failure = n.askShims("inspect", jobs[0].ID())
	require.Zero(t, code, failure)
	_, code, failure = n.askShims("top", "--once", "--interval", "10ms")
	require.Zero(t, code, failure)
	require.Equal(t, callsIn(before), callsIn(scrape(t, address)), "a shim was called")

	resume(shimPids)
	for _, j := range jobs {
		n.answers(j.ID()).finish()
	}
	p.remove()
}

// TestShimsCommandAgainstStock: it says which daemon it has met.
func TestShimsCommandAgainstStock(t *testing.T) {
	n := newNode(t, func(o *daemon.Options) { o.Binary = tool(t, kit.Stock) })
	_, code, failure := n.askShims("ls")
	require.Equal(t, shims.ExitUnavailable, code)
	require.Contains(t, failure, "containerd's own runtime")
}
