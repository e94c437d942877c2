// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// process is the spec of a further process in a container.
func process(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}
}

// exec starts a further process without IO.
func (j *job) exec(id string, args ...string) containerd.Process {
	t := j.b.n.t
	t.Helper()
	p, err := j.Exec(j.b.ctx, id, process(args...), cio.NullIO)
	require.NoError(t, err)
	require.NoError(t, p.Start(j.b.ctx))
	return p
}

// execOutput runs a further process to its end and returns what it wrote and
// its exit code.
func (j *job) execOutput(id string, args ...string) (string, uint32) {
	t := j.b.n.t
	t.Helper()
	// A file, which the shim writes: of a fifo the client may open its end only when the process, and with it what was
	// in the fifo, is gone already.
	out := filepath.Join(t.TempDir(), id)
	p, err := j.Exec(j.b.ctx, id, process(args...), cio.LogFile(out))
	require.NoError(t, err)
	e := waitFor(t, j.b.ctx, p)
	require.NoError(t, p.Start(j.b.ctx))
	code := e.code()
	_, err = p.Delete(j.b.ctx) // waits for the output as well
	require.NoError(t, err)
	data, err := os.ReadFile(out)
	if !os.IsNotExist(err) { // the fake shim writes none
		require.NoError(t, err)
	}
	return strings.TrimSpace(string(data)), code
}

func TestExec(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("exec", forever())
	out, code := j.execOutput("seven", "sh", "-c", "echo out; echo err >&2; exit 7")
	require.EqualValues(t, 7, code)
	require.ElementsMatch(t, []string{"out", "err"}, strings.Fields(out))
	j.finish()
}

func TestExecKill(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	log := n.watch()
	j := n.run("exec", forever())
	p := j.exec("victim", "sleep", "1000000")
	status, err := p.Status(n.ctx)
	require.NoError(t, err)
	require.Equal(t, containerd.Running, status.Status)
	e := waitFor(t, n.ctx, p)
	require.NoError(t, p.Kill(n.ctx, unix.SIGKILL))
	require.EqualValues(t, 137, e.code())
	require.Equal(t, containerd.Running, j.status(), "the task itself goes on")

	// The id is free again once the process has been deleted, not before.
	_, err = j.Exec(n.ctx, "victim", process("true"), cio.NullIO)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	gone, err := p.Delete(n.ctx)
	require.NoError(t, err)
	require.EqualValues(t, 137, gone.ExitCode())
	_, code := j.execOutput("victim", "true")
	require.EqualValues(t, 0, code)
	j.finish()
	log.waitForCount(3, "/tasks/exit", j.ID()) // two execs and the task
	log.waitForCount(2, "/tasks/exec-started", j.ID())
}

func TestExecTTY(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("exec", forever())
	var out output
	spec := process("sh", "-c", "test -t 0 && test -t 1 && echo terminal; read size; stty size; exit 4")
	spec.Terminal = true
	in := newInput()
	p, err := j.Exec(n.ctx, "tty", spec, n.fifos(in, &out, nil, cio.WithTerminal))
	require.NoError(t, err)
	e := waitFor(t, n.ctx, p)
	require.NoError(t, p.Start(n.ctx))
	out.waitFor(t, "terminal")
	require.NoError(t, p.Resize(n.ctx, 90, 33))
	in.write("go\n")
	out.waitFor(t, "33 90")
	require.EqualValues(t, 4, e.code())
	_, err = p.Delete(n.ctx)
	require.NoError(t, err)
	in.Close()
	j.finish()
}

func TestExecOfMissingBinary(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("exec", forever())
	p, err := j.Exec(n.ctx, "missing", process("/no/such/thing"), cio.NullIO)
	require.NoError(t, err)
	require.ErrorContains(t, p.Start(n.ctx), "no such file")
	_, err = p.Delete(n.ctx)
	require.NoError(t, err)
	require.Equal(t, containerd.Running, j.status())
	j.finish()
}

// Execs end with their task, and can be deleted after its exit.
func TestExecEndsWithTask(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("exec", forever())
	p := j.exec("second", "sleep", "1000000")
	e, pe := j.wait(), waitFor(t, n.ctx, p)
	require.NoError(t, j.Kill(n.ctx, unix.SIGKILL))
	require.EqualValues(t, 137, e.code())
	require.EqualValues(t, 137, pe.code())
	_, err := p.Delete(n.ctx)
	require.NoError(t, err)
	j.remove()
}
