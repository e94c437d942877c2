// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// opPatience is how long a caller waits for an operation.
const opPatience = 20 * time.Second

// work does the steps of a worker, until they are done or stop.
func (c *chaos) work(worker int, steps []step, stop <-chan struct{}) {
	for i, st := range steps {
		select {
		case <-stop:
			return
		case <-time.After(st.pause):
		}
		sess := c.awaitSession(stop)
		if sess == nil {
			return
		}
		c.do(fmt.Sprintf("worker %d, step %d", worker, i), sess, st)
	}
}

// do does one operation and notes what came of it.
func (c *chaos) do(who string, sess *session, st step) error {
	s := c.slots[st.slot]
	x := &call{op: st.op, arg: st.arg, session: sess.number}
	if st.op == "wait" || st.op == "exec-wait" {
		c.startWait(who, sess, s, x)
		return nil
	}
	ctx := namespaces.WithNamespace(context.Background(), testNS)
	ctx, cancel := context.WithTimeout(ctx, opPatience)
	if st.leave > 0 {
		cancel()
		ctx, cancel = withCancelAfter(namespaces.WithNamespace(context.Background(), testNS), st.leave)
	}
	defer cancel()
	x.exec = s.target(st)
	s.begin(x)
	err := operations[st.op](c, ctx, sess, s, x)
	if err != nil {
		err = nativeError(err)
	}
	s.finish(x, err)
	c.counts.add(st.op, err)
	c.note(s, "%s: %s %s %d, %s: pid %d, %v", who, st.op, x.exec, st.arg,
		x.end.Sub(x.begin).Round(100*time.Microsecond), x.pid, err)
	c.judge(s, x, sess)
	return err
}

// target is the exec that a step is about: a new one, or the last one.
func (s *slot) target(st step) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch st.op {
	case "exec":
		e := &execution{code: st.arg}
		if st.arg < 0 {
			e.code = -1
		}
		id := fmt.Sprintf("x%d", time.Now().UnixNano())
		s.execs[id] = e
		return id
	case "exec-kill", "exec-wait", "exec-delete", "exec-state":
		if s.last == "" {
			return "none"
		}
		return s.last
	}
	return ""
}

// judge complains of answers that cannot be right whatever else was going on.
func (c *chaos) judge(s *slot, x *call, sess *session) {
	switch {
	case x.op == "list" || x.op == "metrics":
		if x.err != nil && !sess.stopping.Load() && !errdefs.IsCanceled(x.err) {
			c.fail(s, "%s fails: %v", x.op, x.err)
		}
	case errdefs.IsNotFound(x.err) && (x.op == "state" || x.op == "delete" || saysNoTask(s, x.err)):
		if lost := s.mustOne(x.begin, x.end, x); lost != nil {
			c.fail(s, "%s says NotFound of pid %d: %v", x.op, lost.pid, x.err)
		}
	case x.op == "create" && x.err == nil:
		if other := s.mustOne(x.begin, x.end, x); other != nil {
			c.fail(s, "Create made pid %d beside pid %d", x.pid, other.pid)
		}
	}
}

// saysNoTask tells whether a NotFound is about the task: others are about a process that has ended or an exec.
func saysNoTask(s *slot, err error) bool {
	for _, text := range []string{"task " + s.id + " not found", "container not created", "shim process is dead"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// operations are what workers do. An answer's pid is kept in the call.
var operations = map[string]func(*chaos, context.Context, *session, *slot, *call) error{
	"create": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		r, err := sess.calls.TaskService().Create(ctx, &tasks.CreateTaskRequest{ContainerID: s.id, Rootfs: s.rootfs})
		x.pid = r.GetPid()
		return err
	},
	"start": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		r, err := sess.calls.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: s.id})
		x.pid = r.GetPid()
		return err
	},
	"kill": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		_, err := sess.calls.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: s.id, Signal: uint32(x.arg)})
		return err
	},
	"delete": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		r, err := sess.calls.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: s.id})
		if err == nil {
			x.pid = r.Pid
			c.tell(s.id, told{from: "delete", pid: r.Pid, code: r.ExitStatus, at: r.ExitedAt.AsTime(),
				session: sess.number})
		}
		return err
	},
	"pause": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		_, err := sess.calls.TaskService().Pause(ctx, &tasks.PauseTaskRequest{ContainerID: s.id})
		return err
	},
	"resume": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		_, err := sess.calls.TaskService().Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: s.id})
		return err
	},
	"state": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		return c.state(ctx, sess, s, x)
	},
	"exec-state": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		return c.state(ctx, sess, s, x)
	},
	"pids": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		_, err := sess.calls.TaskService().ListPids(ctx, &tasks.ListPidsRequest{ContainerID: s.id})
		return err
	},
	"metrics": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		_, err := sess.calls.TaskService().Metrics(ctx, &tasks.MetricsRequest{})
		return err
	},
	"list": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		_, err := sess.calls.TaskService().List(ctx, &tasks.ListTasksRequest{})
		return err
	},
	"exec": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		p, err := typeurl.MarshalAnyToProto(process(s.execArgs(x.arg)...))
		if err != nil {
			return err
		}
		svc := sess.calls.TaskService()
		_, err = svc.Exec(ctx, &tasks.ExecProcessRequest{ContainerID: s.id, ExecID: x.exec, Spec: p})
		if err != nil {
			return err
		}
		r, err := svc.Start(ctx, &tasks.StartRequest{ContainerID: s.id, ExecID: x.exec})
		if err == nil {
			x.pid = r.Pid
			s.mu.Lock()
			s.execs[x.exec].started, s.last = x, x.exec
			s.mu.Unlock()
		}
		return err
	},
	"exec-kill": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		_, err := sess.calls.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: s.id, ExecID: x.exec, Signal: 9})
		return err
	},
	"exec-delete": func(c *chaos, ctx context.Context, sess *session, s *slot, x *call) error {
		r, err := sess.calls.TaskService().DeleteProcess(ctx,
			&tasks.DeleteProcessRequest{ContainerID: s.id, ExecID: x.exec})
		if err == nil && r.ExitedAt.IsValid() && r.ExitedAt.Seconds > 0 {
			c.tell(s.id, told{from: "delete", exec: x.exec, pid: r.Pid, code: r.ExitStatus, at: r.ExitedAt.AsTime(),
				session: sess.number})
		}
		return err
	},
}

// execArgs is the command of an exec that ends with code, or that does not end.
func (s *slot) execArgs(code int) []string {
	switch {
	case code < 0:
		return []string{"sleep", "1000"}
	case s.fake != "":
		return []string{"exit", fmt.Sprint(code)}
	}
	return []string{"sh", "-c", fmt.Sprintf("exit %d", code)}
}

// state asks for the state of init or of an exec.
func (c *chaos) state(ctx context.Context, sess *session, s *slot, x *call) error {
	r, err := sess.calls.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: s.id, ExecID: x.exec})
	if err != nil {
		return err
	}
	c.tellState(s, x.exec, r.Process, sess)
	x.pid = r.Process.Pid
	return nil
}

// tellState keeps the exit that a State told.
func (c *chaos) tellState(s *slot, exec string, p *tasktypes.Process, sess *session) {
	if p.Status == tasktypes.Status_STOPPED && p.ExitedAt.IsValid() && p.ExitedAt.Seconds > 0 {
		c.tell(s.id, told{from: "state", exec: exec, pid: p.Pid, code: p.ExitStatus, at: p.ExitedAt.AsTime(),
			session: sess.number})
	}
}

// startWait sends a Wait that stays pending until it is answered or the daemon ends.
func (c *chaos) startWait(who string, sess *session, s *slot, x *call) {
	if x.op == "exec-wait" {
		x.exec = s.target(step{op: x.op})
	}
	ctx := namespaces.WithNamespace(context.Background(), testNS)
	c.mu.Lock()
	alive := !sess.stopping.Load()
	if alive {
		sess.pending.Add(1)
	}
	c.mu.Unlock()
	if !alive {
		return
	}
	s.begin(x)
	c.note(s, "%s: %s %s", who, x.op, x.exec)
	go func() {
		defer sess.pending.Done()
		r, err := sess.waits.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: s.id, ExecID: x.exec})
		if err != nil {
			err = nativeError(err)
		}
		s.finish(x, err)
		c.counts.add(x.op, err)
		if err == nil {
			c.tell(s.id, told{from: "wait", exec: x.exec, code: r.ExitStatus, at: r.ExitedAt.AsTime(),
				session: sess.number})
			return
		}
		c.note(s, "%s: %s %s: %v", who, x.op, x.exec, err)
		c.judgeWait(sess, s, x)
	}()
}

// judgeWait complains of a Wait that failed without a reason.
func (c *chaos) judgeWait(sess *session, s *slot, x *call) {
	switch {
	case errdefs.IsUnavailable(x.err) && sess.stopping.Load():
	case errdefs.IsNotFound(x.err):
		if lost := s.mustOne(x.begin, x.end, x); lost != nil && x.exec == "" {
			c.fail(s, "Wait says NotFound of pid %d: %v", lost.pid, x.err)
		}
	default:
		c.fail(s, "Wait %s fails (daemon stopping: %t): %v", x.exec, sess.stopping.Load(), x.err)
	}
}

// warmUpAll runs a task of each kind to its end.
func (c *chaos) warmUpAll() {
	for i, s := range c.slots {
		c.use(i)
		s.clear()
	}
	c.settle("warming up", c.leftovers)
}

// use runs a task to its end, with nothing in the way: all must succeed.
func (c *chaos) use(i int) {
	s, sess := c.slots[i], c.session()
	for _, op := range []step{{op: "create"}, {op: "start"}, {op: "kill", arg: 9}} {
		op.slot = i
		if err := c.do("use", sess, op); err != nil && !(op.op == "kill" && errdefs.IsNotFound(err)) {
			c.fail(s, "cannot %s it (%s) although nothing is in the way: %v", op.op, s.fake, err)
			c.t.FailNow()
		}
	}
	c.settle("using it", func() []complaint {
		err := c.do("use", sess, step{op: "delete", slot: i})
		if err == nil {
			return nil
		}
		refused := (&call{op: "delete", err: err}).refused()
		return []complaint{{s, "cannot delete it: " + err.Error(), !refused}}
	})
}
