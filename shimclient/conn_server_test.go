// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// answerFunc answers a call of the Task service, whatever its version and
// protocol; req is of the v3 API.
type answerFunc func(ctx context.Context, method string, req proto.Message) (proto.Message, error)

// taskServer serves the Task service and counts the connections it got.
type taskServer struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
	stop  func()
}

// Accept implements net.Listener.
func (s *taskServer) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err == nil {
		s.mu.Lock()
		s.conns = append(s.conns, conn)
		s.mu.Unlock()
	}
	return conn, err
}

func (s *taskServer) accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// die closes the listener and every connection, as the kernel does for a
// process that is gone.
func (s *taskServer) die() {
	s.mu.Lock()
	conns := s.conns
	s.mu.Unlock()
	_ = s.Close()
	for _, c := range conns {
		_ = c.Close()
	}
	s.stop()
}

// serveTask serves on l, over the protocol and version of e, until the test ends.
func serveTask(t *testing.T, l net.Listener, e Endpoint, answer answerFunc) *taskServer {
	t.Helper()
	s := &taskServer{Listener: l}
	served := make(chan struct{})
	if e.Protocol == protocolTTRPC {
		srv, err := ttrpc.NewServer()
		require.NoError(t, err)
		srv.RegisterService(taskServices[e.Version], ttrpcService(answer))
		s.stop = sync.OnceFunc(func() { _ = srv.Close(); <-served })
		go func() { defer close(served); _ = srv.Serve(context.Background(), s) }()
	} else {
		srv := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
		srv.RegisterService(grpcService(taskServices[e.Version], answer), nil)
		s.stop = sync.OnceFunc(func() { srv.Stop(); <-served })
		go func() { defer close(served); _ = srv.Serve(s) }()
	}
	t.Cleanup(s.stop)
	return s
}

// taskMethods lists the methods of the Task service.
func taskMethods() protoreflect.MethodDescriptors {
	return api.File_runtime_task_v3_shim_proto.Services().ByName("Task").Methods()
}

func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return mt.New().Interface()
}

func ttrpcService(answer answerFunc) *ttrpc.ServiceDesc {
	desc := &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{}}
	for i := range taskMethods().Len() {
		m := taskMethods().Get(i)
		desc.Methods[string(m.Name())] = func(ctx context.Context, unmarshal func(any) error) (any, error) {
			req := newMessage(m.Input())
			if err := unmarshal(req); err != nil {
				return nil, err
			}
			return orEmpty(m)(answer(ctx, string(m.Name()), req))
		}
	}
	return desc
}

func grpcService(name string, answer answerFunc) *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: name, HandlerType: (*any)(nil)}
	for i := range taskMethods().Len() {
		m := taskMethods().Get(i)
		desc.Methods = append(desc.Methods, grpc.MethodDesc{
			MethodName: string(m.Name()),
			Handler: func(_ any, ctx context.Context, decode func(any) error,
				_ grpc.UnaryServerInterceptor) (any, error) {
				req := newMessage(m.Input())
				if err := decode(req); err != nil {
					return nil, err
				}
				return orEmpty(m)(answer(ctx, string(m.Name()), req))
			},
		})
	}
	return desc
}

// orEmpty makes a nil answer the method's empty one.
func orEmpty(m protoreflect.MethodDescriptor) func(proto.Message, error) (any, error) {
	return func(resp proto.Message, err error) (any, error) {
		if err != nil {
			return nil, err
		}
		if resp == nil {
			resp = newMessage(m.Output())
		}
		return resp, nil
	}
}

// socketDir returns a directory whose path is short enough for sockets.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sy")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// listenUnix listens on a fresh socket file and returns its path.
func listenUnix(t *testing.T) (net.Listener, string) {
	t.Helper()
	path := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l, path
}

// flavours are the four ways in which a shim serves the Task API.
func flavours(t *testing.T, test func(t *testing.T, e Endpoint)) {
	for _, protocol := range []string{protocolTTRPC, protocolGRPC} {
		for version := minVersion; version <= maxVersion; version++ {
			e := Endpoint{Protocol: protocol, Version: version}
			t.Run(protocol+"-v"+string(rune('0'+version)), func(t *testing.T) { test(t, e) })
		}
	}
}

// connectTask serves answer as e says and connects to it.
func connectTask(t *testing.T, e Endpoint, d Deadlines, answer answerFunc) (*taskServer, *Conn, *Task) {
	t.Helper()
	l, path := listenUnix(t)
	e.Address = "unix://" + path
	srv := serveTask(t, l, e, answer)
	conn, err := Dial(testContext(t), e, d)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	task, err := conn.Task(e.Version)
	require.NoError(t, err)
	return srv, conn, task
}

// testContext ends a test that hangs.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until cond holds.
func eventually(t *testing.T, cond func() bool, msg string, args ...any) {
	t.Helper()
	// Also called in cleanups, when the test's own context has ended.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for ; !cond(); time.Sleep(5 * time.Millisecond) {
		if ctx.Err() != nil {
			require.FailNow(t, "it never came true", append([]any{msg}, args...)...)
		}
	}
}

// noLeaks checks, when the test and its cleanups so far are done, that no
// descriptor and no goroutine of a connection is left.
func noLeaks(t *testing.T) {
	t.Helper()
	fds, routines := openFiles(), connRoutines()
	t.Cleanup(func() {
		eventually(t, func() bool { return openFiles() <= fds }, "descriptors: %d before", fds)
		eventually(t, func() bool { return connRoutines() <= routines }, "goroutines: %d before", routines)
	})
}

// openFiles counts this process's descriptors, where the system lists them.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// connRoutines counts the goroutines that serve a connection.
func connRoutines() int {
	buf := make([]byte, 16<<20)
	n := 0
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		for _, owner := range []string{"containerd/ttrpc.", "google.golang.org/grpc", "shimclient.(*wire)",
			"shimclient.dial"} {
			if strings.Contains(stack, owner) {
				n++
				break
			}
		}
	}
	return n
}
