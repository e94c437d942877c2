// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

func answerPid(context.Context, string, proto.Message) (proto.Message, error) {
	return &api.ConnectResponse{ShimPid: 42}, nil
}

// checkServes connects to the endpoint, makes a call and closes.
func checkServes(t *testing.T, e Endpoint) {
	t.Helper()
	require.Equal(t, Reachable, e.Probe(testContext(t)), "%q", e)
	conn, err := Dial(testContext(t), e, nil)
	require.NoError(t, err)
	defer conn.Close()
	require.Equal(t, e, conn.Endpoint())
	task, err := conn.Task(e.Version)
	require.NoError(t, err)
	resp, err := task.Connect(testContext(t), &api.ConnectRequest{ID: "c"})
	require.NoError(t, err)
	require.EqualValues(t, 42, resp.ShimPid)
}

func TestDialSocketFile(t *testing.T) {
	noLeaks(t)
	for address, protocols := range map[string][]string{
		"unix://": {protocolTTRPC, protocolGRPC},
		"":        {protocolTTRPC, protocolGRPC},
	} {
		for _, protocol := range protocols {
			l, path := listenUnix(t)
			e := Endpoint{Protocol: protocol, Address: address + path, Version: 3}
			serveTask(t, l, e, answerPid)
			checkServes(t, e)
		}
	}
}

// An address as of containerd 1.2 to 1.4: the name of an abstract socket that
// looks like a path. A socket file at that path is found first.
func TestDialBarePath(t *testing.T) {
	if !abstractSockets() {
		t.Skip("abstract sockets are Linux's")
	}
	noLeaks(t)
	dir := socketDir(t)
	for there, make := range map[string]func(path string) error{
		"nothing":   func(string) error { return nil },
		"file":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		path := filepath.Join(dir, there)
		require.NoError(t, make(path))
		l, err := net.Listen("unix", "\x00"+path)
		require.NoError(t, err)
		e := Endpoint{Protocol: protocolTTRPC, Address: path, Version: 2}
		serveTask(t, l, e, answerPid)
		checkServes(t, e)
	}
}

func TestDialAbstract(t *testing.T) {
	if !abstractSockets() {
		t.Skip("abstract sockets are Linux's")
	}
	noLeaks(t)
	name := filepath.Base(socketDir(t))
	for i, tc := range []struct{ protocol, before string }{
		{protocolTTRPC, "unix://@"},
		{protocolTTRPC, "unix://\x00"},
		{protocolTTRPC, "\x00"},
		{protocolTTRPC, ""},
		{protocolGRPC, "unix://@"},
		{protocolGRPC, "unix://\x00"},
		{protocolGRPC, "@"},
		{protocolGRPC, "\x00"},
	} {
		name := name + strconv.Itoa(i)
		e := Endpoint{Protocol: tc.protocol, Address: tc.before + name, Version: 3}
		require.Equal(t, Refused, e.Probe(testContext(t)), "%q", e)
		l, err := net.Listen("unix", "\x00"+name)
		require.NoError(t, err)
		srv := serveTask(t, l, e, answerPid)
		checkServes(t, e)
		srv.die()
		require.Equal(t, Refused, e.Probe(testContext(t)), "%q", e)
	}
}

func TestProbe(t *testing.T) {
	noLeaks(t)
	l, path := listenUnix(t)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	for _, address := range []string{"unix://" + path, path} {
		for _, protocol := range []string{protocolTTRPC, protocolGRPC} {
			// Nobody accepts, as with a stopped process: the kernel does.
			require.Equal(t, Reachable, Endpoint{Protocol: protocol, Address: address,
				Version: 3}.Probe(testContext(t)))
		}
	}
	e := Endpoint{Protocol: protocolTTRPC, Address: "unix://" + path, Version: 3}
	ended, cancel := context.WithCancel(testContext(t))
	cancel()
	require.Equal(t, Unknown, e.Probe(ended))

	require.NoError(t, l.Close())
	require.Equal(t, Refused, e.Probe(testContext(t)), "the socket file without a listener")
	require.NoError(t, os.Remove(path))
	require.Equal(t, Refused, e.Probe(testContext(t)), "no socket file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.Equal(t, Unknown, Endpoint{Protocol: protocolTTRPC, Address: "unix://" + path + "/x",
		Version: 3}.Probe(testContext(t)), "not a directory")
	require.Equal(t, Unknown, Endpoint{}.Probe(testContext(t)))

	for reach, text := range map[Reach]string{Unknown: "unknown", Reachable: "reachable", Refused: "refused"} {
		require.Equal(t, text, reach.String())
	}
}

func TestDialErrors(t *testing.T) {
	noLeaks(t)
	path := filepath.Join(socketDir(t), "none")
	for _, protocol := range []string{protocolTTRPC, protocolGRPC} {
		e := Endpoint{Protocol: protocol, Address: "unix://" + path, Version: 3}
		_, err := Dial(testContext(t), e, nil)
		require.Equal(t, errdefs.ErrUnavailable, errdefs.Resolve(err), "%v", err)
		require.ErrorIs(t, err, os.ErrNotExist)
		require.ErrorContains(t, err, e.String())

		ended, cancel := context.WithCancel(testContext(t))
		cancel()
		_, err = Dial(ended, e, nil)
		require.Equal(t, context.Canceled, errdefs.Resolve(err), "%v", err)
	}
	_, err := Dial(testContext(t), Endpoint{}, nil)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	_, err = Dial(testContext(t), Endpoint{Protocol: protocolTTRPC, Address: "vsock://1:2", Version: 9}, nil)
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
}

// A gRPC server that does not say a word, a stopped one, must not hold up Dial
// past its context; one that talks nonsense or hangs up fails it.
func TestDialGRPCHandshake(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"silent": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"nonsense": func(c net.Conn) {
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_, _ = io.Copy(io.Discard, c)
		},
		"hangs up": func(c net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			e := acceptEach(t, func(c net.Conn, _ int) { serve(c) })
			e.Protocol = protocolGRPC
			ctx := testContext(t)
			want := error(errdefs.ErrUnavailable)
			if name == "silent" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
				want = context.DeadlineExceeded
			}
			_, err := Dial(ctx, e, nil)
			require.Equal(t, want, errdefs.Resolve(err), "%v", err)
			require.ErrorContains(t, err, e.String())
		})
	}
}

// acceptEach calls serve for each connection and closes it then; n counts them.
func acceptEach(t *testing.T, serve func(c net.Conn, n int)) Endpoint {
	t.Helper()
	l, path := listenUnix(t)
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c, n) }()
		}
	}()
	return Endpoint{Protocol: protocolTTRPC, Address: "unix://" + path, Version: 3}
}

// readLine reads to the end of the line and no byte further.
func readLine(c net.Conn) string {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(c, b); err != nil || b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

func hybrid(e Endpoint, port string) Endpoint {
	e.Address = "hvsock://" + e.Address[len("unix://"):] + ":" + port
	return e
}

// The guest is not up at first: the monitor hangs up, twice. What the shim says
// in one breath with the monitor's answer is the shim's.
func TestDialHybridVsock(t *testing.T) {
	noLeaks(t)
	lines := make(chan string, 3)
	e := hybrid(acceptEach(t, func(c net.Conn, n int) {
		lines <- readLine(c)
		if n == 2 {
			_, _ = c.Write([]byte("OK 1073741824\nhello"))
			_, _ = io.Copy(io.Discard, c)
		}
	}), "1024")
	conn, err := e.dial(testContext(t))
	require.NoError(t, err)
	defer conn.Close()
	hello := make([]byte, 5)
	_, err = io.ReadFull(conn, hello)
	require.NoError(t, err)
	require.Equal(t, "hello", string(hello))
	for range 3 {
		require.Equal(t, "CONNECT 1024", <-lines)
	}
}

func TestDialHybridVsockErrors(t *testing.T) {
	noLeaks(t)
	refusing := hybrid(acceptEach(t, func(c net.Conn, _ int) {
		readLine(c)
		_, _ = c.Write([]byte("NOT OK\n"))
	}), "1")
	_, err := Dial(testContext(t), refusing, nil)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, `"NOT OK"`)
	require.Equal(t, Unknown, refusing.Probe(testContext(t)))

	endless := hybrid(acceptEach(t, func(c net.Conn, _ int) {
		for {
			if _, err := c.Write([]byte("OK OK OK ")); err != nil {
				return
			}
		}
	}), "1")
	_, err = Dial(testContext(t), endless, nil)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)

	for name, e := range map[string]Endpoint{
		"silent":    hybrid(acceptEach(t, func(c net.Conn, _ int) { _, _ = io.Copy(io.Discard, c) }), "1"),
		"not ready": hybrid(acceptEach(t, func(c net.Conn, _ int) { readLine(c) }), "1"),
	} {
		ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
		_, err = Dial(ctx, e, nil)
		require.Equal(t, context.DeadlineExceeded, errdefs.Resolve(err), "%s: %v", name, err)
		require.Equal(t, Unknown, e.Probe(ctx), name)
		cancel()
	}

	none := Endpoint{Protocol: protocolTTRPC, Address: "hvsock://" + filepath.Join(socketDir(t), "none") + ":1",
		Version: 3}
	_, err = Dial(testContext(t), none, nil)
	require.True(t, errors.Is(err, os.ErrNotExist) && errdefs.IsUnavailable(err), "%v", err)
	require.Equal(t, Refused, none.Probe(testContext(t)))
}

// Where the platform or its kernel has no vsock, Dial says so; where it has, an
// unused port of this machine fails, or hangs. Either way ctx is honoured.
func TestDialVsockUnused(t *testing.T) {
	noLeaks(t)
	e := Endpoint{Protocol: protocolTTRPC, Address: "vsock://1:4294967290", Version: 3}
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, e, nil)
	require.Contains(t, []error{errdefs.ErrUnavailable, errdefs.ErrNotImplemented, context.DeadlineExceeded},
		errdefs.Resolve(err), "%v", err)
	require.NotEqual(t, Reachable, e.Probe(ctx))

	ended, cancel := context.WithCancel(testContext(t))
	cancel()
	_, err = Dial(ended, e, nil)
	require.Equal(t, context.Canceled, errdefs.Resolve(err), "%v", err)
	require.Equal(t, Unknown, e.Probe(ended))
}
