// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package buildkit

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// build is one build of a Dockerfile.
type build struct {
	t      *testing.T
	cmd    *exec.Cmd
	output bytes.Buffer // what it says of its steps
	// result is a directory with the files of the image that is built.
	result string
}

// prepare prepares a build. In its context is a static busybox. options are those of buildctl build.
func (h *host) prepare(t *testing.T, dockerfile string, options ...string) *build {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), answer) // also for a test's clean-up
	t.Cleanup(cancel)
	dir, result := t.TempDir(), filepath.Join(t.TempDir(), "result")
	data, err := os.ReadFile(h.site.Data[Busybox])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "busybox"), data, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644))
	args := []string{"build", "--progress=plain", "--frontend=dockerfile.v0", "--local=context=" + dir,
		"--local=dockerfile=" + dir, "--output=type=local,dest=" + result}
	b := &build{t: t, cmd: h.buildctl(ctx, append(args, options...)...), result: result}
	b.cmd.Stdout, b.cmd.Stderr = &b.output, &b.output
	return b
}

// build builds a Dockerfile, which succeeds.
func (h *host) build(t *testing.T, dockerfile string, options ...string) *build {
	t.Helper()
	b := h.prepare(t, dockerfile, options...)
	require.NoError(t, b.cmd.Run(), "%s", &b.output)
	return b
}

// fails builds one that does not, and returns what it said.
func (h *host) fails(t *testing.T, dockerfile string) string {
	t.Helper()
	b := h.prepare(t, dockerfile)
	require.Error(t, b.cmd.Run())
	return b.output.String()
}

// begin begins a build and returns its end: whether it succeeded. The build is ended with the test.
func (h *host) begin(t *testing.T, dockerfile string) (*build, <-chan error) {
	t.Helper()
	b := h.prepare(t, dockerfile)
	require.NoError(t, b.cmd.Start())
	end := make(chan error, 1)
	over := make(chan struct{})
	go func() { defer close(over); end <- b.cmd.Wait() }()
	t.Cleanup(func() {
		_ = b.cmd.Process.Kill() // it may have ended
		<-over
	})
	return b, end
}

// file is one of the result's, trimmed.
func (b *build) file(path string) string {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.result, path))
	require.NoError(b.t, err)
	return strings.TrimSpace(string(data))
}
