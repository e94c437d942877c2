// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"fmt"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// method is one RPC, whatever carries it.
type method struct {
	name    string
	request func() proto.Message
	answer  func() proto.Message
	call    func(*daemon, context.Context, proto.Message) (proto.Message, error)
}

// message is a pointer to a generated message type T.
type message[T any] interface {
	*T
	proto.Message
}

func unary[T, U any, Req message[T], Resp message[U]](name string,
	f func(*daemon, context.Context, Req) (Resp, error)) method {
	return method{
		name:    name,
		request: func() proto.Message { return Req(new(T)) },
		answer:  func() proto.Message { return Resp(new(U)) },
		call: func(d *daemon, ctx context.Context, req proto.Message) (proto.Message, error) {
			resp, err := f(d, ctx, req.(Req))
			if err != nil {
				return nil, err
			}
			return resp, nil
		},
	}
}

// taskMethods serve versions 2 and 3 alike: their messages are the same on the wire.
var taskMethods = []method{
	unary("State", (*daemon).State),
	unary("Create", (*daemon).Create),
	unary("Start", (*daemon).Start),
	unary("Delete", (*daemon).Delete),
	unary("Pids", (*daemon).Pids),
	unary("Pause", (*daemon).Pause),
	unary("Resume", (*daemon).Resume),
	unary("Checkpoint", (*daemon).Checkpoint),
	unary("Kill", (*daemon).Kill),
	unary("Exec", (*daemon).Exec),
	unary("ResizePty", (*daemon).ResizePty),
	unary("CloseIO", (*daemon).CloseIO),
	unary("Update", (*daemon).Update),
	unary("Wait", (*daemon).Wait),
	unary("Stats", (*daemon).Stats),
	unary("Connect", (*daemon).Connect),
	unary("Shutdown", (*daemon).Shutdown),
}

var sandboxMethods = []method{
	unary("CreateSandbox", (*daemon).CreateSandbox),
	unary("StartSandbox", (*daemon).StartSandbox),
	unary("Platform", (*daemon).Platform),
	unary("StopSandbox", (*daemon).StopSandbox),
	unary("WaitSandbox", (*daemon).WaitSandbox),
	unary("SandboxStatus", (*daemon).SandboxStatus),
	unary("PingSandbox", (*daemon).PingSandbox),
	unary("ShutdownSandbox", (*daemon).ShutdownSandbox),
	unary("SandboxMetrics", (*daemon).SandboxMetrics),
	unary("UpdateSandbox", (*daemon).UpdateSandbox),
}

// service is a set of methods under the name that callers use.
type service struct {
	name    string
	version int // of the Task service; 0: another service
	methods []method
}

func (d *daemon) services() []service {
	var all []service
	for _, v := range d.scenario.versions() {
		all = append(all, service{fmt.Sprintf("containerd.task.v%d.Task", v), v, taskMethods})
	}
	if d.scenario.Sandbox {
		all = append(all, service{"containerd.runtime.sandbox.v1.Sandbox", 0, sandboxMethods})
	}
	return all
}

func (d *daemon) registerTTRPC(srv *ttrpc.Server) {
	for _, s := range d.services() {
		desc := &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{}}
		for _, m := range s.methods {
			desc.Methods[m.name] = func(ctx context.Context, unmarshal func(any) error) (any, error) {
				req := m.request()
				if err := unmarshal(req); err != nil {
					return nil, err
				}
				return d.handle(ctx, s, m, req)
			}
		}
		srv.RegisterService(s.name, desc)
	}
}

func (d *daemon) registerGRPC(srv *grpc.Server) {
	for _, s := range d.services() {
		desc := &grpc.ServiceDesc{ServiceName: s.name, HandlerType: (*any)(nil)}
		for _, m := range s.methods {
			desc.Methods = append(desc.Methods, grpc.MethodDesc{
				MethodName: m.name,
				Handler: func(_ any, ctx context.Context, decode func(any) error,
					_ grpc.UnaryServerInterceptor) (any, error) {
					req := m.request()
					if err := decode(req); err != nil {
						return nil, err
					}
					return d.handle(ctx, s, m, req)
				},
			})
		}
		srv.RegisterService(desc, d)
	}
}
