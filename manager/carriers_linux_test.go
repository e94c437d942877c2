// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// leftBehind starts what a hook of a container leaves behind: a daemon with the environment of the shim, and with it
// the token of the shim's launch, that works in the bundle. It is not the manager's to end, and the test ends it.
func (y *yard) leftBehind(token, dir string) shimclient.ProcessID {
	y.Helper()
	y.later() // a shim that is fast answers, and has a task, within one tick of the clock of start times
	cmd := exec.Command("sleep", "1000")
	cmd.Env = append(os.Environ(), shimclient.CarrierEnv(token))
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	shimtest.Child(y, cmd)
	y.until("it runs", func() bool {
		found, err := shimclient.FindByToken(y.ctx, token)
		return err == nil && len(found) > 0
	})
	id, err := shimclient.LookupProcess(cmd.Process.Pid)
	require.NoError(y, err)
	return id
}

// later waits until what begins from now on has a later start time than what runs.
func (y *yard) later() {
	from := shimclient.Now()
	y.until("the clock of start times goes on", func() bool { return shimclient.Now() > from })
}

// TestFailedCreateSparesWhatEarlierContainersLeft: the create on a warm shim fails, and its undo ends the shim, which
// may hang or be dead. A daemon that a hook of the container before has left behind has the same token in its
// environment and goes on.
func TestFailedCreateSparesWhatEarlierContainersLeft(t *testing.T) {
	for name, s := range map[string]func(*shimtest.Scenario){
		"the container's program is missing": func(s *shimtest.Scenario) { s.Init = []string{"missing"} },
		"the shim dies": func(s *shimtest.Scenario) {
			s.Rules = []shimtest.Rule{{Method: "Create",
				Die: true}}
		},
		"the shim outlives its Shutdown": func(s *shimtest.Scenario) {
			s.Linger = true
			s.Rules = []shimtest.Rule{{Method: "Create", Code: "Internal", Message: "no"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 10})
			setTimeout(t, shimproc.TimeoutShutdown, 300*time.Millisecond)
			y.pooled("c1")
			y.spares(1) // it was there before the shim of c1 came back, so that c2 gets that one
			w := y.warm("c1")
			y.later()
			hook := y.leftBehind(w.token, t.TempDir())
			y.remove("c1")
			y.removed("c1")
			y.spares(2)
			y.later()

			y.shim.Update(s)
			o := y.runcOpts()
			_, err := y.tasks.Create(y.ctx, "c2", o)
			require.Error(t, err)
			y.removed("c2")
			y.gone(w.dir.ID)
			require.True(t, hook.Alive(), "what the hook of c1 has left behind was ended")
			y.shim.Update(func(s *shimtest.Scenario) { *s = shimtest.Scenario{} })
		})
	}
}

// TestIdleShimIsEndedAlone: what hooks left behind outlasts the idle shim that they inherited the token from.
func TestIdleShimIsEndedAlone(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 10})
	setTimeout(t, shimproc.TimeoutShutdown, 300*time.Millisecond)
	y.pooled("c1")
	w := y.warm("c1")
	y.later()
	hook := y.leftBehind(w.token, t.TempDir())
	y.remove("c1")
	y.removed("c1")
	y.spares(2)
	y.shim.Update(func(s *shimtest.Scenario) { s.Linger = true })
	y.endIdle()
	y.gone(w.dir.ID)
	require.True(t, hook.Alive())
	y.shim.Update(func(s *shimtest.Scenario) { s.Linger = false })
}

// TestShimWhoseContainersInheritItsEnvironment: the shims of runwasi know no Connect before they have a task, and a
// container of theirs has the token of the launch in its environment. When the shim dies that is noticed, whatever it
// has been asked and answered.
func TestShimWhoseContainersInheritItsEnvironment(t *testing.T) {
	notYet := shimtest.Rule{Method: "Connect", Code: "NotFound", Message: "no task yet"}
	first := notYet
	first.Times = 1
	for name, rules := range map[string][]shimtest.Rule{
		"it says its pid once it has a task": {first},
		"it never says its pid":              {notYet},
		"it dies while it answers Start":     {notYet, {Method: "Start", Die: true}},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted: %v", name, restarted), func(t *testing.T) {
				y := newYard(t, shimtest.Scenario{InheritEnv: true, Rules: rules})
				task, err := y.tasks.Create(y.ctx, "c1", y.opts("sleep"))
				require.NoError(t, err)
				y.leftBehind(y.instance("c1").ledger.Passage().Token(), t.TempDir())
				if len(rules) > 1 {
					require.Error(t, task.Start(y.ctx))
				} else {
					require.NoError(t, task.Start(y.ctx))
					if restarted {
						y.restart()
					}
					y.killShim("c1")
				}
				heard := y.exitsOf("c1")
				require.Equal(t, []string{"c1", ""}, idsOf(heard))
				require.Empty(t, y.shim.Procs(shimtest.RoleGuest))
			})
		}
	}
}
