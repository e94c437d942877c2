// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/pkg/errors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// call is one RPC that came in.
type call struct {
	service    service
	method     string
	id, execID string
}

// handle is what every RPC goes through.
func (d *daemon) handle(ctx context.Context, s service, m method, req proto.Message) (resp proto.Message, err error) {
	c := call{service: s, method: m.name, id: field(req, "id", "sandbox_id"), execID: field(req, "exec_id")}
	d.traceCall(KindRPC, c, req, nil)
	defer func() { d.traceCall(KindAnswer, c, nil, err) }()
	rule := d.match(c)
	if rule == nil {
		return d.done(m.call(d, ctx, req))
	}
	if !rule.After {
		if err := d.apply(rule, c); err != nil {
			return nil, err
		}
	}
	if rule.Swallow {
		resp = m.answer()
	} else if resp, err = d.done(m.call(d, ctx, req)); err != nil {
		return nil, err
	}
	if rule.After {
		if err := d.apply(rule, c); err != nil {
			return nil, err
		}
	}
	return override(resp, rule.Answer)
}

// done adds the lies that need no rule.
func (d *daemon) done(resp proto.Message, err error) (proto.Message, error) {
	if c, ok := resp.(*taskapi.ConnectResponse); ok && err == nil {
		if pid := d.load().ShimPid; pid != 0 {
			c.ShimPid = pid
		}
	}
	return resp, err
}

func (d *daemon) traceCall(kind string, c call, req proto.Message, err error) {
	e := Entry{Kind: kind, Action: c.method, Service: c.service.name, ID: c.id, ExecID: c.execID}
	if req != nil {
		e.Request, _ = protojson.Marshal(req)
	}
	if err != nil {
		e.Error = err.Error()
	}
	appendTrace(d.home, e)
}

func (r *Rule) matches(c call) bool {
	return (r.Method == "*" || r.Method == c.method) && (r.ID == "" || r.ID == c.id) &&
		(r.ExecID == "" || r.ExecID == c.execID) && (r.Version == 0 || r.Version == c.service.version)
}

// match finds the rule for a call and uses it up once.
func (d *daemon) match(c call) *Rule {
	s := d.load()
	for i := range s.Rules {
		r := &s.Rules[i]
		if !r.matches(c) {
			continue
		}
		if r.Skip == 0 && r.Times == 0 {
			return r
		}
		n := count(d.home, r.counter())
		if n > r.Skip && (r.Times == 0 || n <= r.Skip+r.Times) {
			return r
		}
	}
	return nil
}

// apply does what a rule says. An error is the call's answer.
func (d *daemon) apply(r *Rule, c call) error {
	time.Sleep(r.Delay)
	if r.Hang {
		d.hangWhile(func(now *Scenario) bool {
			return slices.ContainsFunc(now.Rules, func(o Rule) bool { return o.Hang && o.counter() == r.counter() })
		})
	}
	if r.Unlisten {
		_ = d.listener.Listener.Close()
	}
	if r.Die {
		dieHere()
	}
	if r.Drop {
		d.listener.drop()
	}
	if r.Unsupported {
		return status.Errorf(codes.NotFound, "/%s/%s is not supported", c.service.name, c.method)
	}
	if r.Code != "" || r.Message != "" {
		return status.Error(parseCode(r.Code), r.Message)
	}
	return nil
}

// parseCode knows codes by the names that Go gives them ("NotFound").
func parseCode(name string) codes.Code {
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		if c.String() == name {
			return c
		}
	}
	return codes.Unknown
}

func field(m proto.Message, names ...string) string {
	r := m.ProtoReflect()
	for _, name := range names {
		if fd := r.Descriptor().Fields().ByName(protoreflect.Name(name)); fd != nil &&
			fd.Kind() == protoreflect.StringKind {
			return r.Get(fd).String()
		}
	}
	return ""
}

// override replaces fields of an answer. A named field is cleared first, so that zero can be told as well.
func override(resp proto.Message, fields map[string]any) (proto.Message, error) {
	if len(fields) == 0 {
		return resp, nil
	}
	data, err := json.Marshal(fields)
	if err != nil {
		return nil, errors.Wrap(err, "encoding the answer of a rule")
	}
	told := resp.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal(data, told); err != nil {
		return nil, errors.Wrap(err, "decoding the answer of a rule")
	}
	for name := range fields {
		if fd := resp.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name)); fd != nil {
			resp.ProtoReflect().Clear(fd)
		}
	}
	proto.Merge(resp, told)
	return resp, nil
}
