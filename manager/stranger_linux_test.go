// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// strangerAt takes the socket of a task's shim away and accepts connections in its place, and does not answer. The old
// socket goes with end.
func (y *yard) strangerAt(path string) (end func()) {
	y.Helper()
	require.NoError(y, os.Rename(path, path+".old"))
	l, err := net.Listen("unix", path)
	require.NoError(y, err)
	var conns []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	return func() {
		_ = l.Close()
		<-done
		for _, c := range conns {
			_ = c.Close()
		}
		_ = os.Remove(path + ".old")
	}
}

// TestDeathBehindAStranger: another process accepts at the address of a shim that has died. That does not bring the
// shim back.
func TestDeathBehindAStranger(t *testing.T) {
	for name, down := range map[string]bool{"while the daemon runs": false, "while it is down": true} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			pid, _ := y.run("c1", "sleep").PID(y.ctx)
			end := func() {}
			die := func() {
				end = y.strangerAt(y.socketOf("c1"))
				y.killShim("c1")
			}
			if down {
				path := y.socketOf("c1")
				y.restart(func() {
					end = y.strangerAt(path)
					y.killShim("c1")
				})
			} else {
				die()
			}
			defer func() { end() }()
			heard := y.exitsOf("c1")
			require.Equal(t, []string{"c1", ""}, idsOf(heard))
			require.Equal(t, pid, heard[0].Pid)
			require.Equal(t, uint32(137), heard[0].Status)
		})
	}
}

// TestDeathBehindASuccessor: the group's next shim has taken the name of the one before, whose containers died with it.
func TestDeathBehindASuccessor(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	_, err := y.tasks.Create(y.ctx, "c1", y.grouped("g"))
	require.NoError(t, err)
	y.halt()
	away := y.path("away")
	require.NoError(t, os.Rename(y.bundle("c1"), away))
	y.shim.KillAll()
	y.boot()
	_, err = y.tasks.Create(y.ctx, "c2", y.grouped("g"))
	require.NoError(t, err)
	before := y.state(mustGet(y, "c2"))
	y.restart(func() { require.NoError(t, os.Rename(away, y.bundle("c1"))) })

	y.events.await("c1", deleteTopic, 1)
	y.until("c1 is gone", func() bool { return y.instance("c1") == nil })
	y.inState("c2", life.Running)
	require.Equal(t, before, y.state(mustGet(y, "c2")))
	y.events.settle()
	require.Equal(t, []string{"c1", ""}, idsOf(y.events.of("c1", exitTopic, deleteTopic)))
	require.Empty(t, y.events.of("c2", exitTopic, deleteTopic))
	require.Equal(t, runtime.CreatedStatus, before.Status)
	y.remove("c2")
	y.empty()
}

// besideASuccessor has c1 served by a shim whose socket was removed, and c2 by the next shim of the same group, which
// has made a socket of that name. cut takes the first one's connection away before that.
func (y *yard) besideASuccessor(cut bool) {
	y.Helper()
	y.start("c1", y.grouped("g"))
	path := y.socketOf("c1")
	require.NoError(y, os.Rename(path, path+".old"))
	y.Cleanup(func() { _ = os.Remove(path + ".old") })
	p := y.instance("c1").process()
	l, _, lost := p.Watch()
	if cut {
		require.NoError(y, l.Conn.Close())
		<-lost
	}
	y.start("c2", y.grouped("g"))
	require.Equal(y, path, y.socketOf("c2"))
	require.Len(y, y.shim.Procs(shimtest.RoleDaemon), 2)
	require.NotSame(y, p, y.instance("c2").process())
	if cut {
		y.awaitSilence("c1")
	}
}

// TestASuccessorTakesTheAddressOfALivingShim: what the successor says, which does not know its predecessor's tasks, is
// not believed of them, and neither is their death when either dies.
func TestASuccessorTakesTheAddressOfALivingShim(t *testing.T) {
	for name, c := range map[string]struct {
		cut, restart bool
		dies         string
	}{
		"connected, the first dies":          {false, false, "c1"},
		"connected, the successor dies":      {false, false, "c2"},
		"cut off, the first dies":            {true, false, "c1"},
		"cut off, the successor dies":        {true, false, "c2"},
		"over a restart, the first dies":     {true, true, "c1"},
		"over a restart, the successor dies": {true, true, "c2"},
		"over a restart, the second leaves":  {true, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			y := coldYard(t, shimtest.Scenario{})
			y.config.Deadlines = deadlines(500 * time.Millisecond)
			y.boot()
			y.besideASuccessor(c.cut)
			if c.restart {
				y.restart()
				y.inState("c2", life.Running)
				y.awaitSilence("c1")
			}
			other := map[string]string{"c1": "c2", "c2": "c1", "": "c1"}[c.dies]
			before := y.state(mustGet(y, other))
			require.Equal(t, runtime.RunningStatus, before.Status)
			waits := y.waiting(mustGet(y, "c1"))
			if c.dies != "" {
				require.NoError(t, y.instance(c.dies).process().Verified().Signal(syscall.SIGKILL))
				y.events.await(c.dies, deleteTopic, 1)
				y.until(c.dies+" is gone", func() bool { return y.instance(c.dies) == nil })
				require.Equal(t, []string{c.dies, ""}, idsOf(y.events.of(c.dies, exitTopic, deleteTopic)))
				require.Empty(t, y.events.of(other, exitTopic, deleteTopic))
				require.Equal(t, before, y.state(mustGet(y, other)))
			} else {
				y.remove("c2")
				require.Equal(t, before, y.state(mustGet(y, "c1")))
			}
			if other == "c1" {
				require.Empty(t, waits, "Wait never fails for an exchange of sockets")
				require.NoError(t, y.instance("c1").process().Verified().Signal(syscall.SIGKILL))
			} else {
				y.remove("c2")
			}
			require.Equal(t, uint32(137), (<-waits).exit.Status)
			y.empty()
			y.shim.AwaitNoProcs()
		})
	}
}

// TestCreateThatCannotTellWhichShimAnswers, since the group's next shim is silent, is undone with that shim. The
// group's first one, which is not it, goes on.
func TestCreateThatCannotTellWhichShimAnswers(t *testing.T) {
	for name, cut := range map[string]bool{"the first is connected": false, "the first is cut off": true} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{})
			y.start("c1", y.grouped("g"))
			before := y.state(mustGet(y, "c1"))
			path := y.socketOf("c1")
			require.NoError(t, os.Rename(path, path+".old"))
			first := y.instance("c1").process()
			l, _, lost := first.Watch()
			if cut {
				require.NoError(t, l.Conn.Close())
				<-lost
			}
			y.shim.Update(func(s *shimtest.Scenario) { s.Rules = []shimtest.Rule{{Method: "Connect", Hang: true}} })
			ctx, cancel := context.WithCancel(y.ctx)
			failed := make(chan error, 1)
			go func() {
				_, err := y.tasks.Create(ctx, "c2", y.grouped("g"))
				failed <- err
			}()
			y.shim.Await(shimtest.KindRPC, "Connect", 1)
			cancel()
			require.ErrorIs(t, <-failed, context.Canceled)
			y.until("the create is undone", func() bool { return y.instance("c2") == nil })
			require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 1)
			y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil })
			require.NoError(t, os.Rename(path+".old", path))
			y.inState("c1", life.Running)
			require.Equal(t, before, y.state(mustGet(y, "c1")))
			require.Same(t, first, y.instance("c1").process())
			y.remove("c1")
			y.empty()
		})
	}
}

// TestLaunchOfASuccessorCutShort: the daemon was killed when the successor of a living shim had answered and nothing
// else was known of it. It may be either's address: the living one's task is not touched, and what the launch has made
// goes with it at the latest.
func TestLaunchOfASuccessorCutShort(t *testing.T) {
	y := coldYard(t, shimtest.Scenario{})
	y.config.Deadlines = deadlines(500 * time.Millisecond)
	y.boot()
	y.start("c1", y.grouped("g"))
	before := y.state(mustGet(y, "c1"))
	path := y.socketOf("c1")
	require.NoError(t, os.Rename(path, path+".old"))
	require.NoError(t, y.launchOf("c2", y.grouped("g")))
	require.Len(t, y.shim.Procs(shimtest.RoleDaemon), 2)
	y.restart(func() {
		y.changeRecord("c2", func(r map[string]any) {
			delete(r, "endpoint")
			delete(r, "shim")
			delete(r["launch"].(map[string]any), "answered")
		})
	})
	y.awaitSilence("c1")
	require.Equal(t, before, y.state(mustGet(y, "c1")))
	require.NoError(t, y.instance("c1").process().Verified().Signal(syscall.SIGKILL))
	y.events.await("c1", deleteTopic, 1)
	y.empty()
	y.shim.AwaitNoProcs()
	require.Empty(t, y.events.of("c2"))
	require.NoError(t, os.Remove(path+".old"))
}
