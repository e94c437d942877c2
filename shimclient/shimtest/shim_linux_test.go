// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
)

// recorder stands for the test in the tests of what fails tests.
type recorder struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func (r *recorder) Helper()                   {}
func (r *recorder) Failed() bool              { return false }
func (r *recorder) Cleanup(f func())          { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(f string, a ...any) { r.errors = append(r.errors, fmt.Sprintf(f, a...)) }
func (r *recorder) finish() {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
}

// impatient lets what is left be found left at once, until the returned function is called.
func impatient() (end func()) {
	before := settle
	settle = 200 * time.Millisecond
	return func() { settle = before }
}

func TestLeftoversFailTheTest(t *testing.T) {
	defer impatient()()
	r := newRig(t, Scenario{})
	rec := &recorder{TB: t}
	r.shim = Install(rec, Scenario{})
	k := r.dial(r.start(r.bootstrapStdin()))
	k.create(r)
	rec.finish()
	require.Len(t, rec.errors, 3, "a daemon, a guest and a socket")
	all := strings.Join(rec.errors, "\n")
	require.Contains(t, all, "left by the test: daemon")
	require.Contains(t, all, "left by the test: guest")
	require.Contains(t, all, "left by the test: socket")
	require.Empty(t, r.shim.Procs())
	require.NoDirExists(t, r.shim.Home)
}

func TestCheckLeaks(t *testing.T) {
	rec := &recorder{TB: t}
	CheckLeaks(rec)
	stop, running := make(chan struct{}), make(chan struct{})
	go func() { close(running); <-stop }()
	<-running
	f, err := os.Open("/dev/null")
	require.NoError(t, err)
	cmd := exec.Command("/bin/sh", "-c", "exit 0")
	require.NoError(t, cmd.Start())
	patient := impatient()
	rec.finish()
	patient()
	close(stop)
	require.NoError(t, f.Close())
	require.NoError(t, cmd.Wait())
	all := strings.Join(rec.errors, "\n")
	require.Contains(t, all, "goroutine")
	require.Contains(t, all, "/dev/null")
	require.Contains(t, all, fmt.Sprintf("child %d", cmd.Process.Pid))

	rec = &recorder{TB: t}
	CheckLeaks(rec)
	rec.finish()
	require.Empty(t, rec.errors)
}

func TestStopAndCont(t *testing.T) {
	r, k := running(t, Scenario{})
	d := r.shim.Daemon(r.id)
	require.NoError(t, d.Stop())
	require.True(t, d.Alive())
	done := make(chan error, 1)
	go func() { done <- k.tryState(r.id) }()
	require.NoError(t, d.Cont())
	require.NoError(t, <-done)
	k.finish(r)
	require.NoError(t, d.until("to end", func() bool { return !d.Alive() }), "its file is gone before it is")
	require.Error(t, d.Signal(syscall.SIGTERM))
	require.NoError(t, d.Kill())
}

func TestTermEndsTheDaemon(t *testing.T) {
	r := newRig(t, Scenario{})
	k := r.dial(r.start(r.bootstrapStdin()))
	require.Error(t, k.tryState(r.id)) // it serves, so it is ready for the signal too
	require.NoError(t, r.shim.Daemon(r.id).Signal(syscall.SIGTERM))
	r.shim.AwaitNoProcs()
	require.Empty(t, r.shim.Sockets())
}

// Each install is another file, and so is what Replace puts there.
func TestIdentity(t *testing.T) {
	r := newRig(t, Scenario{})
	other := Install(t, Scenario{}, WithName("containerd-shim-other-v2"))
	require.Equal(t, "io.containerd.fake.v1", r.shim.Runtime())
	require.Equal(t, "io.containerd.other.v2", other.Runtime())
	a, err := os.Stat(r.shim.Path)
	require.NoError(t, err)
	b, err := os.Stat(other.Path)
	require.NoError(t, err)
	require.False(t, os.SameFile(a, b))
	k := r.dial(r.start(r.bootstrapStdin()))
	r.shim.Replace()
	c, err := os.Stat(r.shim.Path)
	require.NoError(t, err)
	require.False(t, os.SameFile(a, c))
	require.Equal(t, r.id, r.shim.Daemon(r.id).ID, "found though its file was replaced")
	k.shutdown(r.id)
}

func TestMarker(t *testing.T) {
	marker := []byte("containerd.runtime.bootstrap." + "v1")
	for _, unmarked := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "binary")
		require.NoError(t, placeBinary(path, unmarked))
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, !unmarked, bytes.Contains(data, marker))
	}
}

// When the test process is gone, so are the fake's, soon.
func TestOwnerGone(t *testing.T) {
	r, k := running(t, Scenario{})
	require.NotEmpty(t, k.state(r.id, "").Pid)
	data, err := json.Marshal(owner{Pid: os.Getpid(), Start: 1})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(ownerPath(r.shim.Home), data, 0o600))
	r.shim.AwaitNoProcs()
	require.Error(t, k.try("State", &taskapi.StateRequest{ID: r.id}, &taskapi.StateResponse{}))
	r.shim.AllowLeftovers() // the socket
}

// A daemon that lingers has said yes, and ends when it may.
func TestLinger(t *testing.T) {
	r := newRig(t, Scenario{Linger: true})
	k := r.dial(r.start(r.bootstrapStdin()))
	k.shutdown(r.id)
	require.Error(t, k.tryState(r.id)) // it answers, that there is no such task
	require.True(t, r.shim.Daemon(r.id).Alive())
	require.Zero(t, r.shim.Count(KindExit, ""))
	r.shim.Update(func(s *Scenario) { s.Linger = false })
	r.shim.AwaitNoProcs()
	require.Equal(t, 1, r.shim.Count(KindExit, ""))
}
