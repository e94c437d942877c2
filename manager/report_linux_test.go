// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"io"
	"os"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// listen collects what the daemon logs from here on, at info level and above.
func (y *yard) listen() *logtest.Hook {
	y.Helper()
	hook, logger := &logtest.Hook{}, log.L.Logger
	before, out, level := logger.ReplaceHooks(logrus.LevelHooks{}), logger.Out, log.GetLevel()
	logger.AddHook(hook)
	logger.SetOutput(io.Discard)
	require.NoError(y, log.SetLevel("info"))
	y.Cleanup(func() {
		logger.ReplaceHooks(before)
		logger.SetOutput(out)
		require.NoError(y, log.SetLevel(level.String()))
	})
	return hook
}

// linesOf are the messages of what was logged.
func linesOf(h *logtest.Hook) (lines []string) {
	for _, e := range h.AllEntries() {
		lines = append(lines, e.Message)
	}
	return lines
}

// line is the one with a message.
func (y *yard) line(h *logtest.Hook, message string) (found *logrus.Entry) {
	y.Helper()
	for _, e := range h.AllEntries() {
		if e.Message == message {
			require.Nil(y, found, "%q is logged twice", message)
			found = e
		}
	}
	require.NotNil(y, found, "%q is not among %q", message, linesOf(h))
	return found
}

// TestCleanUpThatWasStuck is three lines: the death, the first failure, and the success, which says for whom, how long
// that took and how often it was tried.
func TestCleanUpThatWasStuck(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	_, err := y.run("c1", "exit", "7").Wait(y.ctx) // so that its init is not ended in between
	require.NoError(t, err)
	pid := y.instance("c1").shimPid().Pid
	let := y.hold(y.bundle("c1"))
	h := y.listen()
	y.killShim("c1")
	y.until("two attempts have failed", func() bool {
		_, failures := y.instance("c1").remains.Failed()
		return failures > 1
	})
	let()
	y.empty()
	require.Equal(t, []string{
		"shim is dead: its process is gone", "cannot clean up after task; it is tried again until it succeeds",
		"cleaned up after task, which had failed before",
	}, linesOf(h))
	e := y.line(h, "cleaned up after task, which had failed before")
	require.Equal(t, logrus.InfoLevel, e.Level)
	require.Greater(t, e.Data["attempts"], 2)
	require.Contains(t, e.Data, "after")
	for _, line := range h.AllEntries()[1:] {
		require.Equal(t, testNamespace, line.Data["namespace"])
		require.Equal(t, "c1", line.Data["id"])
		require.Equal(t, y.shim.Path, line.Data["runtime"])
		require.Equal(t, pid, line.Data["shim_pid"])
	}
}

// TestCleanUpThatSucceeds at once is no news.
func TestCleanUpThatSucceeds(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	h := y.listen()
	y.run("c1", "sleep")
	y.remove("c1")
	y.empty()
	require.Empty(t, linesOf(h))
}

// TestRestoreIsReported once, when it is known of all instances what becomes of them.
func TestRestoreIsReported(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	for _, id := range []string{"c1", "c2", "c3"} {
		y.run(id, "sleep")
	}
	h := y.listen()
	y.restart(func() { y.killShim("c3") })
	const all = "all that an earlier daemon left is settled"
	y.until("all are settled", func() bool {
		for _, line := range linesOf(h) {
			if line == all {
				return true
			}
		}
		return false
	})
	e := y.line(h, all)
	require.Equal(t, logrus.InfoLevel, e.Level)
	require.Equal(t, []any{2, 0, 1, 0},
		[]any{e.Data["running"], e.Data["undone"], e.Data["dead"], e.Data["left_alone"]})
	require.Contains(t, e.Data, "duration")
	y.remove("c1")
	y.remove("c2")
	y.empty()
	y.line(h, all)
}

// TestConnectionThatComesBack is one line.
func TestConnectionThatComesBack(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	y.run("c1", "sleep")
	h := y.listen()
	p := y.instance("c1").process()
	l, _, _ := p.Watch()
	require.NoError(t, l.Conn.Close())
	const back = "the connection to the shim was lost, and is back"
	y.until("it is connected again", func() bool {
		now, _, _ := p.Watch()
		return now != nil && now != l && processStateOf(p) == shimproc.Connected && len(linesOf(h)) > 0
	})
	require.Contains(t, y.line(h, back).Data, "after")
	require.Equal(t, []string{back}, linesOf(h))
	y.remove("c1")
	y.empty()
}

// TestErrorsAreLoggedOnce, however often what they are about is tried.
func TestErrorsAreLoggedOnce(t *testing.T) {
	for name, c := range map[string]struct {
		s    shimtest.Scenario
		do   func(*yard)
		says string
	}{
		"a shim does not say what it knows": {
			do: func(y *yard) {
				y.shim.Update(func(s *shimtest.Scenario) {
					s.Rules = []shimtest.Rule{{Method: "State", Code: "Unknown", Message: "no idea", Times: 3}}
				})
				y.restart()
				y.inState("c1", life.Running)
				y.remove("c1")
			},
			says: "shim does not say what it knows of a restored instance; asking again",
		},
		"the binary is gone": {
			do: func(y *yard) {
				t.Setenv("PATH", "")
				p := y.shim.Daemon("c1")
				require.NoError(y, os.Rename(y.shim.Path, y.shim.Path+".away"))
				require.NoError(y, p.Kill())
			},
			says: "the shim's binary is gone: its delete cannot run",
		},
		"a shim does not say what it mounts": {
			s: shimtest.Scenario{Info: shimtest.InfoAnswer{Fail: "no info"}},
			do: func(y *yard) {
				y.restart() // a daemon that has not asked yet
				for _, id := range []string{"c2", "c3"} {
					y.start(id, withMount(y.opts("sleep")))
					y.remove(id)
				}
				y.remove("c1")
			},
			says: "cannot ask the shim what it mounts itself, assuming nothing",
		},
		"shim delete fails": {
			s:    shimtest.Scenario{Delete: shimtest.DeleteFaults{Fail: 2, FailText: "not now"}},
			do:   func(y *yard) { y.killShim("c1") },
			says: "cannot ask for the exit of a dead shim's container",
		},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, c.s)
			y.run("c1", "sleep")
			h := y.listen()
			c.do(y)
			y.until("c1 is gone", func() bool { return y.instance("c1") == nil })
			y.line(h, c.says)
		})
	}
}
