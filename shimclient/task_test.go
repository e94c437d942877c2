// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	apiv2 "github.com/containerd/containerd/api/runtime/task/v2"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Every method reaches the method of that name, with the request, the
// namespace and the deadline, and brings back its answer or its error.
func TestTaskMethods(t *testing.T) {
	flavours(t, func(t *testing.T, e Endpoint) {
		noLeaks(t)
		type seen struct {
			method, namespace string
			deadline          bool
			req               proto.Message
		}
		var got seen
		limits := Deadlines{}
		for method := range DefaultDeadlines() {
			limits[method] = time.Minute
		}
		_, _, task := connectTask(t, e, limits,
			func(ctx context.Context, method string, req proto.Message) (proto.Message, error) {
				_, deadline := ctx.Deadline()
				got = seen{method, receivedNamespace(ctx), deadline, req}
				if reflect.ValueOf(req).Elem().FieldByName("ID").String() == "missing" {
					return nil, errgrpc.ToGRPC(errors.Wrap(errdefs.ErrNotFound, "container missing"))
				}
				return filled(taskMethods().ByName(protoreflect.Name(method)).Output()), nil
			})
		require.Equal(t, e.Version, task.Version())
		// No deadline of the caller's: that of the method shows.
		ctx := namespaces.WithNamespace(context.Background(), "ns")

		for i := range taskMethods().Len() {
			m := taskMethods().Get(i)
			name := string(m.Name())
			call := reflect.ValueOf(task).MethodByName(name)
			require.True(t, call.IsValid(), "no method %s", name)

			req := filled(m.Input())
			out := call.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(req)})
			require.True(t, out[len(out)-1].IsNil(), "%s: %v", name, out[len(out)-1])
			require.Equal(t, name, got.method)
			require.Equal(t, "ns", got.namespace, name)
			require.Equal(t, limits[name] > 0, got.deadline, name)
			require.True(t, proto.Equal(req, got.req), "%s: %v", name, got.req)
			if m.Output().Fields().Len() > 0 {
				require.True(t, proto.Equal(filled(m.Output()), out[0].Interface().(proto.Message)), "%s: %v", name,
					out[0])
			} else {
				require.Len(t, out, 1, name)
			}

			reflect.ValueOf(req).Elem().FieldByName("ID").SetString("missing")
			out = call.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(req)})
			err, _ := out[len(out)-1].Interface().(error)
			require.True(t, errdefs.IsNotFound(err), "%s: %v", name, err)
			require.EqualError(t, err, "container missing: not found")
			if len(out) == 2 {
				require.True(t, out[0].IsNil(), name)
			}
		}
	})
}

// receivedNamespace reads the namespace as a shim does.
func receivedNamespace(ctx context.Context) string {
	if ns, ok := ttrpc.GetMetadataValue(ctx, namespaces.TTRPCHeader); ok {
		return ns
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		return strings.Join(md.Get(namespaces.GRPCHeader), ",")
	}
	return ""
}

// filled returns a message with a value in every scalar field, no two of the
// same type alike.
func filled(d protoreflect.MessageDescriptor) proto.Message {
	m := newMessage(d)
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if f.IsList() || f.IsMap() {
			continue
		}
		switch f.Kind() {
		case protoreflect.StringKind:
			m.ProtoReflect().Set(f, protoreflect.ValueOfString(string(f.Name())))
		case protoreflect.BoolKind:
			m.ProtoReflect().Set(f, protoreflect.ValueOfBool(true))
		case protoreflect.Uint32Kind:
			m.ProtoReflect().Set(f, protoreflect.ValueOfUint32(uint32(i)+1))
		}
	}
	return m
}

// The v3 messages are sent for v2 as well, so that they must not differ on the
// wire: same methods, and in their messages the same fields by number, name,
// type and cardinality, all the way down.
func TestVersionsAreWireIdentical(t *testing.T) {
	v2 := apiv2.File_runtime_task_v2_shim_proto.Services().ByName("Task").Methods()
	v3 := taskMethods()
	require.Equal(t, 17, v3.Len())
	require.Equal(t, v3.Len(), v2.Len())
	compared := map[protoreflect.FullName]bool{}
	for i := range v3.Len() {
		m := v2.ByName(v3.Get(i).Name())
		require.NotNil(t, m, "%s", v3.Get(i).Name())
		require.False(t, m.IsStreamingClient() || m.IsStreamingServer() || v3.Get(i).IsStreamingClient() ||
			v3.Get(i).IsStreamingServer())
		sameMessage(t, m.Input(), v3.Get(i).Input(), compared)
		sameMessage(t, m.Output(), v3.Get(i).Output(), compared)
	}
	for _, name := range []protoreflect.FullName{"containerd.task.v3.CreateTaskRequest", "containerd.types.Mount",
		"google.protobuf.Timestamp"} {
		require.True(t, compared[name], "%s was not compared", name)
	}
	for version, service := range taskServices {
		file := map[int]protoreflect.FileDescriptor{2: apiv2.File_runtime_task_v2_shim_proto,
			3: api.File_runtime_task_v3_shim_proto}[version]
		require.Equal(t, string(file.Services().ByName("Task").FullName()), service)
	}
}

func sameMessage(t *testing.T, a, b protoreflect.MessageDescriptor, compared map[protoreflect.FullName]bool) {
	t.Helper()
	if compared[b.FullName()] {
		return
	}
	compared[b.FullName()] = true
	require.Equal(t, a.Name(), b.Name())
	require.Equal(t, a.Fields().Len(), b.Fields().Len(), "%s and %s", a.FullName(), b.FullName())
	for i := range b.Fields().Len() {
		fb := b.Fields().Get(i)
		fa := a.Fields().ByNumber(fb.Number())
		require.NotNil(t, fa, "%s", fb.FullName())
		for what, same := range map[string]bool{
			"name":        fa.Name() == fb.Name(),
			"kind":        fa.Kind() == fb.Kind(),
			"cardinality": fa.Cardinality() == fb.Cardinality(),
			"packed":      fa.IsPacked() == fb.IsPacked(),
			"map":         fa.IsMap() == fb.IsMap(),
			"oneof":       (fa.ContainingOneof() == nil) == (fb.ContainingOneof() == nil),
		} {
			require.True(t, same, "%s of %s and %s differ", what, fa.FullName(), fb.FullName())
		}
		if fb.Message() != nil {
			sameMessage(t, fa.Message(), fb.Message(), compared)
		}
		if fb.Enum() != nil {
			require.Equal(t, fa.Enum().Values().Len(), fb.Enum().Values().Len())
			for i := range fb.Enum().Values().Len() {
				v := fb.Enum().Values().Get(i)
				require.Equal(t, v.Name(), fa.Enum().Values().ByNumber(v.Number()).Name())
			}
		}
	}
}

// generatedV2 answers State through the generated code of the v2 API.
type generatedV2 struct{ apiv2.TTRPCTaskService }

func (generatedV2) State(_ context.Context, req *apiv2.StateRequest) (*apiv2.StateResponse, error) {
	return &apiv2.StateResponse{
		ID: req.ID, ExecID: req.ExecID, Pid: 42, Status: tasktypes.Status_STOPPED,
		ExitStatus: 7, ExitedAt: &timestamppb.Timestamp{Seconds: 1, Nanos: 2},
	}, nil
}

func TestGeneratedV2Server(t *testing.T) {
	l, path := listenUnix(t)
	srv, err := ttrpc.NewServer()
	require.NoError(t, err)
	apiv2.RegisterTTRPCTaskService(srv, generatedV2{})
	go func() { _ = srv.Serve(context.Background(), l) }()
	t.Cleanup(func() { _ = srv.Close() })

	conn, err := Dial(testContext(t), Endpoint{Protocol: protocolTTRPC, Address: "unix://" + path, Version: 2}, nil)
	require.NoError(t, err)
	defer conn.Close()
	task, err := conn.Task(2)
	require.NoError(t, err)
	got, err := task.State(testContext(t), &api.StateRequest{ID: "c", ExecID: "e"})
	require.NoError(t, err)
	require.True(t, proto.Equal(&api.StateResponse{
		ID: "c", ExecID: "e", Pid: 42, Status: tasktypes.Status_STOPPED,
		ExitStatus: 7, ExitedAt: &timestamppb.Timestamp{Seconds: 1, Nanos: 2},
	}, got), "%v", got)

	// The version that a shim does not serve is NotImplemented, so that a caller
	// can go down to the other.
	task, err = conn.Task(3)
	require.NoError(t, err)
	_, err = task.State(testContext(t), &api.StateRequest{ID: "c"})
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
	require.EqualError(t, err, "service containerd.task.v3.Task")

	for _, version := range []int{1, 4} {
		_, err = conn.Task(version)
		require.True(t, errdefs.IsNotImplemented(err), "%v", err)
	}
}
