// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/stretchr/testify/require"
)

// output collects what a process writes.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// waitFor waits until the process has written text.
func (o *output) waitFor(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(o.String(), text) }, patience, tick,
		"waiting for %q", text)
}

// input is what a process reads; Close ends it for the copying client.
type input struct {
	*io.PipeReader
	w *io.PipeWriter
}

func newInput() *input {
	r, w := io.Pipe()
	return &input{PipeReader: r, w: w}
}

// write blocks until the client has taken the text.
func (i *input) write(text string) { _, _ = io.WriteString(i.w, text) }

// end makes the client's copying end, as the end of a file does.
func (i *input) end() { _ = i.w.Close() }

// fifos makes the IO of a process with fifos in the daemon's directory.
func (n *node) fifos(stdin io.Reader, stdout, stderr io.Writer, more ...cio.Opt) cio.Creator {
	return cio.NewCreator(append([]cio.Opt{cio.WithStreams(stdin, stdout, stderr), cio.WithFIFODir(n.FIFODir())},
		more...)...)
}

func TestStdio(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var stdout, stderr output
	j := n.create("stdio",
		shell("read line; echo \"out: $line\"; echo \"err: $line\" >&2; dd if=/dev/zero bs=1024 count=300 2>/dev/null; exit 3")).
		newTaskIO(n.fifos(strings.NewReader("hello\n"), &stdout, &stderr))
	e := j.wait()
	j.start()
	require.EqualValues(t, 3, e.code())
	j.remove() // waits until all has been copied
	require.Equal(t, "out: hello\n"+strings.Repeat("\x00", 300<<10), stdout.String())
	require.Equal(t, "err: hello\n", stderr.String())
}

func TestTTYAndResize(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var out output
	in := newInput()
	script := "test -t 0 && test -t 1 && test -t 2 && echo terminal; stty size; read size; stty size; read size; exit 6"
	j := n.create("tty", shell(script), with(oci.WithTTY, oci.WithTTYSize(100, 40))).
		newTaskIO(n.fifos(in, &out, nil, cio.WithTerminal))
	e := j.wait()
	j.start()
	out.waitFor(t, "terminal")
	out.waitFor(t, "40 100")
	require.NoError(t, j.Resize(n.ctx, 81, 27))
	in.write("go\n")
	out.waitFor(t, "27 81")
	in.write("go\n")
	require.EqualValues(t, 6, e.code())
	in.end()
	j.remove()
}

// cat ends when its input does, which it does only once the shim has been told:
// it holds the fifo open itself.
func TestCloseOfStdin(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var out output
	in := newInput()
	j := n.create("cat", spec("cat")).newTaskIO(n.fifos(in, &out, &out))
	e := j.wait()
	j.start()
	in.write("some words\n")
	out.waitFor(t, "some words")
	in.end()
	require.Equal(t, containerd.Running, j.status())
	require.NoError(t, j.CloseIO(n.ctx, containerd.WithStdinCloser))
	require.EqualValues(t, 0, e.code())
	j.remove()
	require.Equal(t, "some words\n", out.String())
}
