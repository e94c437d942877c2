// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package box_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/conformance/box"
)

func TestMain(m *testing.M) {
	box.Dispatch()
	os.Exit(m.Run())
}

const insideEnv = "SHIMYARD_TEST_INSIDE"

// inside skips a test that only runs in the box that another one makes.
func inside(t *testing.T) {
	if os.Getenv(insideEnv) == "" {
		t.Skip("runs in a box that TestBox makes")
	}
}

func spec(t *testing.T, test string) (box.Spec, *bytes.Buffer) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip(box.ErrNotRoot)
	}
	layer, out := t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(layer, "etc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(layer, "etc/of-the-layer"), []byte("yes"), 0o644))
	shared := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(shared, "file"), []byte("shared"), 0o644))
	var b bytes.Buffer
	return box.Spec{
		Layers: []string{layer}, Shared: []string{shared}, Out: out, Hosts: []string{"registry.example"},
		Trusted: []byte("TRUSTED\n"),
		Args:    []string{"-test.v", "-test.run=^" + test + "$"}, Stdout: &b, Stderr: &b,
		Env: []string{insideEnv + "=" + shared + ":" + out, "PATH=" + box.Path},
	}, &b
}

func TestBox(t *testing.T) {
	s, b := spec(t, "TestInside")
	require.NoError(t, box.Run(t.Context(), s), b)
	require.Contains(t, b.String(), "--- PASS: TestInside", b)
	data, err := os.ReadFile(filepath.Join(s.Out, "out"))
	require.NoError(t, err)
	require.Equal(t, "from inside", string(data))
	require.NoFileExists(t, "/etc/made-inside")
	requireNothing(t)
}

func TestBoxEndsWithItsContext(t *testing.T) {
	s, b := spec(t, "TestInsideForEver")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(s.Out, "begun")); err == nil {
				cancel()
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	require.ErrorIs(t, box.Run(ctx, s), context.Canceled, b)
	requireNothing(t)
}

func TestBoxTellsTheProgramsExitStatus(t *testing.T) {
	s, b := spec(t, "TestInsideFails")
	var exit *exec.ExitError
	require.ErrorAs(t, box.Run(t.Context(), s), &exit, b)
	require.Equal(t, 1, exit.ExitCode())
}

// requireNothing checks that no directory of this process's boxes is left.
func requireNothing(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{os.TempDir() + "/", "/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		left, err := filepath.Glob(pattern + box.Prefix() + "*")
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

func TestInside(t *testing.T) {
	inside(t)
	shared, out, _ := strings.Cut(os.Getenv(insideEnv), ":")
	name, err := os.Hostname()
	require.NoError(t, err)
	require.Equal(t, "box", name)
	require.Equal(t, 1, os.Getppid())

	require.NoError(t, os.WriteFile("/etc/made-inside", nil, 0o644))
	require.FileExists(t, "/etc/of-the-layer")
	require.FileExists(t, filepath.Join(shared, "file"))
	require.ErrorIs(t, os.WriteFile(filepath.Join(shared, "file"), nil, 0o644), unix.EROFS)
	require.NoError(t, os.WriteFile(filepath.Join(out, "out"), []byte("from inside"), 0o644))

	ips, err := net.LookupHost("registry.example")
	require.NoError(t, err)
	require.Equal(t, []string{"127.0.0.1"}, ips)
	bundle, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(bundle), "TRUSTED\n"))
	l, err := net.Listen("tcp", box.Address+":0")
	require.NoError(t, err)
	require.NoError(t, l.Close())

	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	merged := filepath.Join(dir, "merged")
	require.NoError(t, unix.Mount("overlay", merged, "overlay", 0,
		"lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"))
	require.NoError(t, unix.Unmount(merged, 0))

	cgroups, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	for line := range strings.Lines(string(cgroups)) {
		path := strings.TrimSpace(line[strings.LastIndexByte(line, ':')+1:])
		require.Contains(t, []string{"/", "/init"}, path, "a cgroup namespace of its own")
	}

	require.NoError(t, os.WriteFile("/proc/sys/kernel/domainname", []byte("inside"), 0o644))
	require.NoError(t, box.Cover("/proc/sys/kernel/panic", "7\n"))
	data, err := os.ReadFile("/proc/sys/kernel/panic")
	require.NoError(t, err)
	require.Equal(t, "7\n", string(data))
}

func TestInsideForEver(t *testing.T) {
	inside(t)
	_, out, _ := strings.Cut(os.Getenv(insideEnv), ":")
	require.NoError(t, exec.Command("/bin/sleep", "1000000").Start())
	require.NoError(t, os.WriteFile(filepath.Join(out, "begun"), nil, 0o644))
	select {}
}

func TestInsideFails(t *testing.T) {
	inside(t)
	t.Fail()
}
