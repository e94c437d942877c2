// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// running is a rig with a task that runs, and rules that are set only then.
func running(t *testing.T, s Scenario, rules ...Rule) (*rig, *task) {
	t.Helper()
	r := newRig(t, s)
	r.config(nil, "sleep")
	k := r.dial(r.start(r.bootstrapStdin()))
	k.create(r)
	k.start(r.id, "")
	r.rules(rules...)
	return r, k
}

func (r *rig) rules(rules ...Rule) { r.shim.Update(func(s *Scenario) { s.Rules = rules }) }

func (k *task) tryState(id string) error {
	return k.try("State", &taskapi.StateRequest{ID: id}, &taskapi.StateResponse{})
}

func TestRuleErrors(t *testing.T) {
	for _, transport := range []string{"ttrpc", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			r, k := running(t, Scenario{Transport: transport},
				Rule{Method: "State", Code: "FailedPrecondition", Message: "odd", Times: 1},
				Rule{Method: "State", Message: "plain", Skip: 1, Times: 1},
				Rule{Method: "Pids", Unsupported: true},
				Rule{Method: "Delete", Code: "Internal", Message: "busy", Times: 2, ID: r0},
			)
			err := k.tryState(r.id)
			require.Equal(t, codes.FailedPrecondition, status.Code(err))
			require.ErrorContains(t, err, "odd")
			require.NoError(t, k.tryState(r.id), "the second rule lets one through")
			err = k.tryState(r.id)
			require.Equal(t, codes.Unknown, status.Code(err))
			require.NoError(t, k.tryState(r.id))
			err = k.try("Pids", &taskapi.PidsRequest{ID: r.id}, &taskapi.PidsResponse{})
			require.Equal(t, codes.NotFound, status.Code(err))
			require.ErrorContains(t, err, "/containerd.task.v3.Task/Pids is not supported")
			require.Equal(t, 4+0, r.shim.Count(KindRPC, "State"))
			require.Len(t, withError(r.shim.Find(KindAnswer, "State")), 2)
			k.kill(r.id, 9)
			require.EqualValues(t, 137, k.wait(r.id, ""))
			for range 2 {
				require.ErrorContains(t, k.try("Delete", &taskapi.DeleteRequest{ID: r.id}, &taskapi.DeleteResponse{}),
					"busy")
			}
			k.delete(r.id, "")
			k.shutdown(r.id)
		})
	}
}

// r0 is the id of a rig.
const r0 = "c1"

func withError(entries []Entry) []Entry {
	var found []Entry
	for _, e := range entries {
		if e.Error != "" {
			found = append(found, e)
		}
	}
	return found
}

// A call that hangs is done when the rule goes, though its caller is gone by then.
func TestRuleHang(t *testing.T) {
	r, k := running(t, Scenario{}, Rule{Method: "Kill", Hang: true})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- k.call(ctx, "containerd.task.v3.Task", "Kill", &taskapi.KillRequest{ID: r.id, Signal: 9},
			&emptypb.Empty{})
	}()
	r.shim.Await(KindRPC, "Kill", 1)
	require.NoError(t, k.tryState(r.id), "other calls go through")
	cancel()
	require.Error(t, <-done)
	require.Equal(t, tasktypes.Status_RUNNING, k.state(r.id, "").Status)
	r.rules()
	require.EqualValues(t, 137, k.wait(r.id, ""))
	k.delete(r.id, "")
	k.shutdown(r.id)
}

func TestRuleSwallowAndAnswer(t *testing.T) {
	r, k := running(t, Scenario{ShimPid: 4711},
		Rule{Method: "Kill", Swallow: true, Times: 1},
		Rule{Method: "State", Answer: map[string]any{"pid": 0, "status": "STOPPED", "exit_status": 9}, Times: 1},
		Rule{Method: "Start", Answer: map[string]any{"pid": 1}, Swallow: true},
	)
	k.kill(r.id, 9)
	st := k.state(r.id, "")
	require.Equal(t, []any{uint32(0), tasktypes.Status_STOPPED, uint32(9), r.bundle},
		[]any{st.Pid, st.Status, st.ExitStatus, st.Bundle})
	require.Equal(t, tasktypes.Status_RUNNING, k.state(r.id, "").Status)
	require.EqualValues(t, 1, k.start(r.id, ""))
	resp := &taskapi.ConnectResponse{}
	k.must("Connect", &taskapi.ConnectRequest{ID: r.id}, resp)
	require.EqualValues(t, 4711, resp.ShimPid)
	require.NotZero(t, resp.TaskPid)
	k.finish(r)
}

func TestRuleDie(t *testing.T) {
	for _, after := range []bool{false, true} {
		r := newRig(t, Scenario{Rules: []Rule{{Method: "Create", Die: true, After: after}}})
		r.config(nil, "sleep")
		k := r.dial(r.start(r.bootstrapStdin()))
		err := k.try("Create", &taskapi.CreateTaskRequest{ID: r.id, Bundle: r.bundle}, &taskapi.CreateTaskResponse{})
		require.ErrorIs(t, err, ttrpc.ErrClosed)
		r.shim.AwaitNoProcs(RoleDaemon)
		guests := r.shim.Procs(RoleGuest)
		require.Equal(t, after, len(guests) == 1)
		if after {
			require.Equal(t, []string{r.id, r.bundle}, []string{guests[0].ID, guests[0].Bundle})
		}
		r.shim.KillAll()
		r.shim.AllowLeftovers()
	}
}

func TestRuleDropAndUnlisten(t *testing.T) {
	for _, transport := range []string{"ttrpc", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			r, k := running(t, Scenario{Transport: transport}, Rule{Method: "Pause", Drop: true, After: true},
				Rule{Method: "Resume", Unlisten: true})
			require.Error(t, k.try("Pause", &taskapi.PauseRequest{ID: r.id}, &emptypb.Empty{}))
			again := r.dial(r.start(r.bootstrapStdin())) // the same daemon
			require.Equal(t, tasktypes.Status_PAUSED, again.state(r.id, "").Status)
			again.must("Resume", &taskapi.ResumeRequest{ID: r.id}, &emptypb.Empty{})
			_, err := net.Dial("unix", r.shim.Sockets()[0])
			require.ErrorContains(t, err, "refused")
			again.finish(r)
			require.Equal(t, []string{"/tasks/create", "/tasks/start", "/tasks/paused", "/tasks/resumed", "/tasks/exit",
				"/tasks/delete"},
				r.events.Topics(r.id))
		})
	}
}

func TestRuleDelay(t *testing.T) {
	r, k := running(t, Scenario{}, Rule{Method: "State", Delay: 20 * time.Millisecond, After: true})
	require.NoError(t, k.tryState(r.id))
	e := r.shim.Trace()
	var asked, answered time.Time
	for _, x := range e {
		if x.Action == "State" && x.Kind == KindRPC {
			asked = x.Time
		}
		if x.Action == "State" && x.Kind == KindAnswer {
			answered = x.Time
		}
	}
	require.GreaterOrEqual(t, answered.Sub(asked), 20*time.Millisecond)
	k.finish(r)
}

// The reply promises version 3 and only 2 is there, on either transport.
func TestDowngrade(t *testing.T) {
	for _, transport := range []string{"ttrpc", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			r := newRig(t, Scenario{Transport: transport, Versions: []int{2}})
			r.config(nil, "sleep")
			k := r.dial(r.start(r.bootstrapStdin()))
			require.Equal(t, 3, k.version)
			require.Equal(t, codes.Unimplemented, status.Code(k.tryState(r.id)))
			k.version = 2
			k.create(r)
			k.start(r.id, "")
			k.finish(r)
		})
	}
}

func TestEventRules(t *testing.T) {
	r := newRig(t, Scenario{Events: []EventRule{
		{Topic: "/tasks/start", Drop: true},
		{Topic: "/tasks/exit", Duplicate: true, Delay: time.Millisecond, ID: r0},
	}})
	r.config(nil, "exit", "3")
	k := r.dial(r.start(r.bootstrapStdin()))
	k.create(r)
	k.start(r.id, "")
	require.EqualValues(t, 3, k.wait(r.id, ""))
	// What is delivered and not yet acknowledged when the endpoint closes is told again.
	r.shim.Await(KindEvent, "/tasks/exit", 2)
	r.events.Close()
	k.delete(r.id, "")
	r.events.Open()
	r.events.Await("/tasks/delete", r.id, 1)
	require.Equal(t, "/tasks/create /tasks/exit /tasks/exit /tasks/delete", strings.Join(r.events.Topics(r.id), " "))
	exits := r.events.Await("/tasks/exit", r.id, 2)
	require.True(t, proto.Equal(exits[0].Message, exits[1].Message))
	require.Equal(t, testNS, exits[0].Namespace)
	k.shutdown(r.id)
	r.shim.AwaitNoProcs()
	require.Equal(t, 4, r.shim.Count(KindEvent, ""))
}
