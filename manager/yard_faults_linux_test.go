// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func rules(r ...shimtest.Rule) shimtest.Scenario { return shimtest.Scenario{Rules: r} }

func starting(f shimtest.StartFaults) shimtest.Scenario { return shimtest.Scenario{Start: f} }

func replying(r shimtest.Reply) shimtest.Scenario { return shimtest.Scenario{Reply: r} }

// deaf is a shim whose events are lost, as when the daemon is away for longer than it tries.
func deaf() shimtest.Scenario {
	return shimtest.Scenario{Events: []shimtest.EventRule{{Topic: runtime.TaskExitEventTopic, Drop: true}}}
}

// killShim ends the shim that was started under an id, and returns when the kernel has.
func (y *yard) killShim(id string) {
	y.Helper()
	p := y.shim.Daemon(id)
	require.NoError(y, p.Kill())
	y.until("its threads are gone, which hold its socket", func() bool {
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.Pid))
		return len(threads) <= 1
	})
}

// stop freezes the shim that was started under an id and lets it go on at the end.
func (y *yard) stop(id string) (cont func()) {
	y.Helper()
	p := y.shim.Daemon(id)
	require.NoError(y, p.Stop())
	y.until("all its threads have stopped", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
		return !slices.ContainsFunc(threads, func(path string) bool {
			data, err := os.ReadFile(path)
			return err == nil && !strings.Contains(string(data), ") T ")
		})
	})
	cont = func() { _ = p.Cont() }
	y.Cleanup(cont)
	return cont
}

// silence lets a shim fall silent and waits until that is known.
func (y *yard) silence(id string) (cont func()) {
	y.Helper()
	cont = y.stop(id)
	_, err := mustGet(y, id).Pids(y.ctx)
	require.Error(y, err)
	y.until("the breaker is open",
		func() bool { return processStateOf(y.instance(id).process()) == shimproc.Unresponsive })
	return cont
}

// hurry goes on with a daemon that has little patience with the shims of some tasks. What needs time on a busy machine,
// as the first Connect, was done by the one before.
func (y *yard) hurry(ids ...string) {
	y.Helper()
	y.config.Deadlines = deadlines(150 * time.Millisecond)
	y.restart()
	for _, id := range ids {
		y.inState(id, life.Running)
	}
}

// launchOf is a create up to the launch.
func (y *yard) launchOf(id string, opts runtime.CreateOpts) error {
	y.Helper()
	i := newInstance(y.m, y.tasks.layout, life.Task, testNamespace, id, life.Launching)
	require.NoError(y, y.m.reserve(y.ctx, i))
	r, err := readRequest(opts)
	require.NoError(y, err)
	b, err := y.m.resolver.Resolve(opts.Runtime)
	require.NoError(y, err)
	i.describe(r, b)
	to, err := y.m.sandboxShimFor(y.ctx, i, opts)
	require.NoError(y, err)
	_, err = y.m.shimFor(y.ctx, i, to)
	return err
}

// launchByHand runs the shim's `start` as a daemon would that is killed right after. end collects the helper.
func (y *yard) launchByHand(i *Instance) (end func()) {
	y.Helper()
	token := shimclient.NewToken()
	edit(i, func(r *bundle.Record) { r.Launch = &bundle.Launch{Token: token, Binary: y.shim.Path} })
	require.NoError(y, i.ledger.Persist())
	logs, err := shimclient.OpenLog(i.bundle.LogPath(), nil)
	require.NoError(y, err)
	cmd := exec.Command(y.shim.Path, "-namespace", testNamespace, "-id", "c1", "-address", y.config.GRPCAddress,
		"start")
	cmd.Dir = i.bundle.Path
	cmd.Env = append(os.Environ(), shimclient.TokenEnv+"="+token, "TTRPC_ADDRESS="+y.events.path)
	require.NoError(y, cmd.Start())
	reaped := make(chan struct{}) // at once, as init does with what a dead daemon leaves
	go func() {
		defer close(reaped)
		_ = cmd.Wait()
	}()
	start := y.shim.Await(shimtest.KindExec, "start", 1)
	require.Equal(y, cmd.Process.Pid, start[0].Pid)
	s := "none"
	y.shim.Update(func(sc *shimtest.Scenario) { s = string(sc.Start.HangAt) })
	if s == string(shimtest.AfterFork) {
		y.shim.Await(shimtest.KindExec, "daemon", 1)
	}
	if s == "" {
		<-reaped
	}
	return func() { <-reaped; _ = logs.Close() }
}

// unknownBox requires what containerd's clients are used to be answered for a sandbox that nobody knows.
func (y *yard) unknownBox(id string) {
	y.Helper()
	before := time.Now()
	s, err := y.boxes.Status(y.ctx, id, true)
	require.NoError(y, err)
	require.Equal(y, id, s.SandboxID)
	require.False(y, s.ExitedAt.Before(before), "it has exited just now")
	require.NoError(y, y.boxes.Stop(y.ctx, id))
	_, err = y.boxes.Wait(y.ctx, id)
	require.True(y, errdefs.IsNotFound(err), "Wait: %v", err)
	require.True(y, errdefs.IsNotFound(y.boxes.Shutdown(y.ctx, id)), "Shutdown")
	_, err = y.boxes.Start(y.ctx, id)
	require.True(y, errdefs.IsNotFound(err), "Start: %v", err)
	_, err = y.boxes.Platform(y.ctx, id)
	require.True(y, errdefs.IsNotFound(err), "Platform: %v", err)
	_, err = y.boxes.Metrics(y.ctx, id)
	require.True(y, errdefs.IsNotFound(err), "Metrics: %v", err)
	require.True(y, errdefs.IsNotFound(y.boxes.Update(y.ctx, id, sandbox.Sandbox{ID: id})), "Update")
}

func (y *yard) socketOf(id string) string {
	y.Helper()
	r, err := y.instance(id).bootstrap()
	require.NoError(y, err)
	return r.Address[len("unix://"):]
}

func setUmask(t *testing.T, mask int) {
	before := unix.Umask(mask)
	t.Cleanup(func() { unix.Umask(before) })
}
