// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// copySleep places a copy of sleep, so that its file is not everybody's.
func copySleep(t *testing.T, name string) string {
	t.Helper()
	from, err := exec.LookPath("sleep")
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, exec.Command("cp", from, path).Run())
	return path
}

func byToken(t *testing.T, token string) []ProcessID {
	t.Helper()
	found, err := FindByToken(t.Context(), token)
	require.NoError(t, err)
	return found
}

func byDir(t *testing.T, dir string) []ProcessID {
	t.Helper()
	found, err := FindByDir(t.Context(), dir)
	require.NoError(t, err)
	return found
}

func TestVerifyShim(t *testing.T) {
	path := copySleep(t, "containerd-shim-foo-v9")
	file, err := IdentifyFile(path)
	require.NoError(t, err)
	b := Binary{Path: path, File: file}
	token := NewToken()
	pid := shimtest.Child(t, withToken(exec.Command(path, "1000"), token)).Process.Pid
	requireShim := func(b Binary, token string) {
		t.Helper()
		id, err := VerifyShim(t.Context(), pid, b, token)
		require.NoError(t, err)
		require.Equal(t, pid, id.Pid)
		require.True(t, id.Alive())
	}
	requireOther := func(pid int, b Binary, token string) {
		t.Helper()
		_, err := VerifyShim(t.Context(), pid, b, token)
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	}

	requireShim(b, "")
	requireShim(Binary{Path: "/elsewhere/renamed", File: file}, "")
	requireShim(Binary{Path: "/elsewhere/containerd-shim-foo-v9"}, "")
	requireShim(Binary{Path: "/elsewhere/other"}, token)
	requireOther(pid, Binary{Path: "/elsewhere/other"}, "")
	requireOther(pid, Binary{Path: "/elsewhere/other"}, NewToken())
	requireOther(pid, Binary{}, "")
	requireOther(sleeper(t).Process.Pid, b, token)

	link := filepath.Join(t.TempDir(), "current-shim")
	require.NoError(t, os.Symlink(path, link))
	requireShim(Binary{Path: link}, "")

	// Upgraded, then removed, under the running shim.
	require.NoError(t, os.Rename(copySleep(t, "containerd-shim-foo-v9"), path))
	requireShim(b, "")
	require.NoError(t, os.Remove(path))
	requireShim(b, "")

	self, err := os.Executable()
	require.NoError(t, err)
	requireOther(os.Getpid(), Binary{Path: self}, "")
	_, err = VerifyShim(t.Context(), 1<<30, b, token)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

func TestVerifyShimThatIsAScript(t *testing.T) {
	token := NewToken()
	path := writeBinary(t, "containerd-shim-foo-v9", "#!/bin/sh\necho up\nread x\n")
	cmd := withToken(exec.Command(path), token)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	shimtest.Child(t, cmd)
	_, err = io.ReadFull(stdout, make([]byte, 3))
	require.NoError(t, err)
	_, err = VerifyShim(t.Context(), cmd.Process.Pid, Binary{Path: path}, token)
	require.NoError(t, err)
	_, err = VerifyShim(t.Context(), cmd.Process.Pid, Binary{Path: path}, "")
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	stdin.Close()
}

func TestFindByToken(t *testing.T) {
	token := NewToken()
	require.Empty(t, byToken(t, token))
	cmd := shimtest.Child(t, withToken(exec.Command("sleep", "1000"), token))
	shimtest.Child(t, withToken(exec.Command("sleep", "1000"), token+"0"))
	shimtest.Child(t, withToken(exec.Command("sleep", "1000"), NewToken()))
	want, err := LookupProcess(cmd.Process.Pid)
	require.NoError(t, err)
	eventually(t, func() bool { return len(byToken(t, token)) == 1 }, "it runs")
	require.Equal(t, []ProcessID{want}, byToken(t, token))
	require.Empty(t, byToken(t, token[:len(token)-1]))
	require.Empty(t, byToken(t, ""))

	// A zombie is not found.
	require.NoError(t, cmd.Process.Kill())
	require.NoError(t, want.Wait(t.Context()))
	require.Empty(t, byToken(t, token))
}

func TestFindByDir(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir = dir
	shimtest.Child(t, cmd)
	want, err := LookupProcess(cmd.Process.Pid)
	require.NoError(t, err)
	require.Equal(t, []ProcessID{want}, byDir(t, dir))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	require.Equal(t, []ProcessID{want}, byDir(t, link))
	require.Empty(t, byDir(t, t.TempDir()))

	require.NoError(t, os.Remove(dir))
	require.Equal(t, []ProcessID{want}, byDir(t, dir))
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.Empty(t, byDir(t, dir), "another directory of the same path")
}

// Daemons that fork away from a helper are found, in sessions and groups of their own, and while they fork on.
func TestEndLaunch(t *testing.T) {
	token := NewToken()
	other := shimtest.Child(t, withToken(exec.Command("sleep", "1000"), NewToken()))
	script := `
for i in 1 2 3; do setsid sleep 1000 & done
(while :; do sh -c 'sleep 0.01; exec sleep 1000' & sleep 0.005; done) &
exec sleep 1000`
	cmd := shimtest.Child(t, withToken(exec.Command("sh", "-c", script), token))
	eventually(t, func() bool { return len(byToken(t, token)) > 10 }, "the launch forks")
	require.NoError(t, EndLaunch(t.Context(), token, nil))
	require.Empty(t, byToken(t, token))
	require.Error(t, cmd.Wait())
	id, err := LookupProcess(other.Process.Pid)
	require.NoError(t, err, "the process of another launch was killed")
	require.True(t, id.Alive())
	require.NoError(t, EndLaunch(t.Context(), token, nil), "again")
}

func TestEndLaunchNeedsAToken(t *testing.T) {
	for _, token := range []string{"", "x", "=", "1234567\x00"} {
		require.True(t, errdefs.IsInvalidArgument(EndLaunch(t.Context(), token, nil)), "%q", token)
	}
}

func TestEndLaunchSaysWhatIsLeft(t *testing.T) {
	token := NewToken()
	cmd := shimtest.Child(t, withToken(exec.Command("sleep", "1000"), token))
	eventually(t, func() bool { return len(byToken(t, token)) == 1 }, "it runs")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	pidfd := pidfdOpen
	pidfdOpen = func(int, int) (int, error) { return -1, os.ErrPermission }
	t.Cleanup(func() { pidfdOpen = pidfd })
	err := EndLaunch(ctx, token, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "left: ")
	require.True(t, cmd.ProcessState == nil)
}

// What a launch has run for a container is not what it has made: what began between two moments stays.
func TestEndLaunchSpares(t *testing.T) {
	token := NewToken()
	shim := shimtest.Child(t, withToken(exec.Command("sleep", "1000"), token))
	daemon := shimtest.Child(t, withToken(exec.Command("sleep", "1000"), token))
	kept, err := LookupProcess(daemon.Process.Pid)
	require.NoError(t, err)
	eventually(t, func() bool { return len(byToken(t, token)) == 2 }, "both run")
	require.NoError(t, EndLaunch(t.Context(), token, func(id ProcessID) bool { return id == kept }))
	require.Equal(t, []ProcessID{kept}, byToken(t, token))
	require.Error(t, shim.Wait(), "it was killed")
	require.NoError(t, EndLaunch(t.Context(), token, nil))
	require.Empty(t, byToken(t, token))
}

// A process that began before the launch cannot be one of it, and is not looked at.
func TestTokenTellsWhenItWasMade(t *testing.T) {
	before := Now()
	token := NewToken()
	require.GreaterOrEqual(t, madeAt(token), before)
	require.LessOrEqual(t, madeAt(token), Now())
	require.Zero(t, madeAt("0123456789abcdef"), "one of an earlier version")
	id, err := LookupProcess(sleeper(t).Process.Pid)
	require.NoError(t, err)
	require.GreaterOrEqual(t, id.StartTime, madeAt(token))
}
