// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

func TestRun(t *testing.T) {
	h := theHost(t)
	h.echo(t, "from a container")
	for code, command := range map[int][]string{3: {"sh", "-c", "exit 3"}, 127: {"/no/such/program"}} {
		_, got := h.once(t, command...)
		require.Equal(t, code, got)
		h.echo(t, "after it")
	}
	require.Empty(t, h.tasks(t))
}

func TestInputAndTerminal(t *testing.T) {
	h := theHost(t)
	cmd := exec.CommandContext(t.Context(), program, append(runArgs("--rm", "-i"), Image, "cat")...)
	cmd.Stdin = strings.NewReader("word\n")
	out, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, "word\n", string(out))
	require.Equal(t, "/dev/pts/0", h.docker(t, append(runArgs("--rm", "-t"), Image, "tty")...))
}

func TestExec(t *testing.T) {
	h := theHost(t)
	c := h.shell(t, obedient).ready()
	require.Equal(t, "yes", c.exec("echo yes"))
	require.Equal(t, 9, h.code(t, "exec", c.id, "sh", "-c", "exit 9"))
	require.Equal(t, "33", h.docker(t, "exec", "-u", "www-data", c.id, "id", "-u"))
	require.NotZero(t, h.code(t, "exec", c.id, "/no/such/program"))
	h.docker(t, "exec", "-d", c.id, "sh", "-c", "touch /tmp/detached")
	procs.Eventually(t, procs.Patience, func() bool {
		return h.code(t, "exec", c.id, "test", "-e", "/tmp/detached") == 0
	})
	h.docker(t, "stop", c.id)
	require.Equal(t, 7, c.await(procs.Patience))
}

func TestLogsAreWhole(t *testing.T) {
	h := theHost(t)
	const lines = 20000
	c := h.shell(t, fmt.Sprintf("seq %d; echo last >&2", lines))
	require.Equal(t, 0, c.await(procs.Patience))
	list := strings.Fields(h.docker(t, "logs", c.id)) // its stderr is another stream
	require.Len(t, list, lines)
	require.Equal(t, fmt.Sprint(lines), list[lines-1])
}

func TestStop(t *testing.T) {
	h := theHost(t)
	for name, c := range map[string]struct {
		script string
		code   int
	}{
		"obeys":   {obedient, 7},
		"ignores": {"trap '' TERM; echo ready; while true; do sleep 0.1; done", 137},
	} {
		t.Run(name, func(t *testing.T) {
			one := h.shell(t, c.script).ready()
			pid := one.pid()
			h.docker(t, "stop", "-t", "2", one.id)
			procs.Gone(t, pid)
			require.Equal(t, c.code, one.await(procs.Patience))
			h.docker(t, "start", one.id)
			require.Equal(t, "true", one.inspect(".State.Running"), "the id serves again")
			h.docker(t, "rm", "-f", one.id)
			require.NotContains(t, h.tasks(t), one.id)
		})
	}
}

func TestPause(t *testing.T) {
	h := theHost(t)
	c := h.shell(t, obedient).ready()
	h.docker(t, "pause", c.id)
	require.Equal(t, "paused", c.inspect(".State.Status"))
	h.docker(t, "unpause", c.id)
	require.Equal(t, "yes", c.exec("echo yes"))
}

func TestStatsAndTop(t *testing.T) {
	h := theHost(t)
	c := h.shell(t, obedient).ready()
	require.Equal(t, c.id[:12], h.docker(t, "stats", "--no-stream", "--format", "{{.Container}}", c.id[:12]))
	require.Contains(t, h.docker(t, "top", c.id, "-o", "pid"), fmt.Sprint(c.pid()))
}

func TestUpdate(t *testing.T) {
	h := theHost(t)
	c := h.shell(t, obedient, "-m", "64m").ready()
	h.docker(t, "update", "-m", "96m", "--memory-swap", "96m", c.id)
	limit := c.exec("cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes")
	require.Equal(t, "100663296", limit)
}

func TestRestartPolicy(t *testing.T) {
	h := theHost(t)
	c := h.shell(t, "echo once; exit 5", "--restart=on-failure:3")
	procs.Eventually(t, procs.Patience, func() bool {
		return c.number(".RestartCount") == 3 && c.inspect(".State.Status") == "exited"
	})
	require.Equal(t, 5, c.number(".State.ExitCode"))
	require.Len(t, strings.Fields(h.docker(t, "logs", c.id)), 4)
}

// The pause is for the shim, which begins to listen for OOM kills once the container runs; and dockerd may hear of the
// exit before it hears of the kill.
func TestOOM(t *testing.T) {
	h := theHost(t)
	c := h.shell(t, "sleep 1; exec tail /dev/zero", "-m", "24m", "--memory-swap", "24m")
	require.Equal(t, 137, c.await(procs.Patience))
	procs.Eventually(t, procs.Patience, func() bool { return c.inspect(".State.OOMKilled") == "true" })
}

func TestPrune(t *testing.T) {
	h := theHost(t)
	running, ended := h.shell(t, obedient).ready(), h.shell(t, "exit 1")
	ended.await(procs.Patience)
	h.docker(t, "container", "prune", "-f")
	list := h.docker(t, "ps", "-a", "-q", "--no-trunc")
	require.Contains(t, list, running.id)
	require.NotContains(t, list, ended.id)
	require.Equal(t, []string{running.id}, h.tasks(t))
}

// Each is started again, at growing pauses, and all of that happens at the same time.
func TestTwentyThatFailAtOnceAreRestartedAndRemoved(t *testing.T) {
	h := theHost(t)
	var ids []string
	for range 20 {
		args := append(runArgs("--restart=always"), Image, "sh", "-c", "exit 1")
		args[0] = "create"
		c := &container{t: t, h: h, id: h.docker(t, args...)}
		t.Cleanup(c.remove)
		ids = append(ids, c.id)
	}
	var starts errgroup.Group
	for _, id := range ids {
		starts.Go(func() error {
			_, _, err := h.try(t.Context(), "start", id)
			return err
		})
	}
	require.NoError(t, starts.Wait())
	inspect := append([]string{"inspect", "-f", "{{ge .RestartCount 3}}"}, ids...)
	procs.Eventually(t, news, func() bool { return !strings.Contains(h.docker(t, inspect...), "false") })
	h.docker(t, append([]string{"rm", "-f"}, ids...)...)
	require.Empty(t, h.docker(t, "ps", "-a", "-q"))
	require.Empty(t, h.tasks(t))
	h.echo(t, "served")
}
