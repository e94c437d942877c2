// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func args(a ...string) *specs.Spec { return &specs.Spec{Process: &specs.Process{Args: a}} }

func anyOf(t require.TestingT, v any) typeurl.Any {
	a, err := typeurl.MarshalAny(v)
	require.NoError(t, err)
	return a
}

// withMount makes the mount manager do something for the task.
func withMount(o runtime.CreateOpts) runtime.CreateOpts {
	o.Rootfs = []mount.Mount{{Type: "x-disk", Source: "/disk"}, {Type: "bind", Source: "/data"}}
	return o
}

// opts of a create that runs a command in the fake shim.
func (y *yard) opts(command ...string) runtime.CreateOpts {
	y.Helper()
	return runtime.CreateOpts{Spec: anyOf(y, args(command...)), Runtime: y.shim.Path}
}

// grouped are the options of a create in a group, as containerd 1.x's CRI makes pods.
func (y *yard) grouped(group string) runtime.CreateOpts {
	y.Helper()
	spec := args("sleep")
	spec.Annotations = map[string]string{"io.kubernetes.cri.sandbox-id": group}
	o := y.opts("sleep")
	o.Spec = anyOf(y, spec)
	return o
}

func (y *yard) runcOpts(command ...string) runtime.CreateOpts {
	o := y.opts(command...)
	o.Runtime = plugins.RuntimeRuncV2
	return o
}

// inBox are the options of a create that joins a sandbox.
func (y *yard) inBox(box string) runtime.CreateOpts {
	y.Helper()
	o := withMount(y.opts("sleep"))
	o.SandboxID = box
	return o
}

func (y *yard) create(id string, command ...string) runtime.Task {
	y.Helper()
	task, err := y.tasks.Create(y.ctx, id, y.opts(command...))
	require.NoError(y, err)
	return task
}

func (y *yard) run(id string, command ...string) runtime.Task {
	y.Helper()
	task := y.create(id, command...)
	require.NoError(y, task.Start(y.ctx))
	return task
}

func (y *yard) start(id string, o runtime.CreateOpts) {
	y.Helper()
	task, err := y.tasks.Create(y.ctx, id, o)
	require.NoError(y, err)
	require.NoError(y, task.Start(y.ctx))
}

// exec starts a process in a task.
func (y *yard) exec(task runtime.Task, id string, command ...string) runtime.ExecProcess {
	y.Helper()
	p, err := task.Exec(y.ctx, id, runtime.ExecOpts{Spec: typeurl.MarshalProto(anyOf(y, args(command...).Process))})
	require.NoError(y, err)
	require.NoError(y, p.Start(y.ctx))
	return p
}

func mustGet(y *yard, id string) runtime.Task {
	y.Helper()
	task, err := y.tasks.Get(y.ctx, id)
	require.NoError(y, err)
	return task
}

func (y *yard) state(task runtime.Process) runtime.State {
	y.Helper()
	s, err := task.State(y.ctx)
	require.NoError(y, err)
	return s
}

// waiting starts a Wait and returns where its end comes.
func (y *yard) waiting(p runtime.Process) <-chan waited {
	ch := make(chan waited, 1)
	go func() {
		exit, err := p.Wait(y.ctx)
		ch <- waited{exit, err}
	}()
	return ch
}

func (y *yard) kill(task runtime.Task) *runtime.Exit {
	y.Helper()
	err := task.Kill(y.ctx, 9, true)
	if err != nil {
		require.ErrorContains(y, err, "already finished")
	}
	exit, err := task.Wait(y.ctx)
	require.NoError(y, err)
	return exit
}

// remove kills a task, waits for it and deletes it.
func (y *yard) remove(id string) *runtime.Exit {
	y.Helper()
	task, err := y.tasks.Get(y.ctx, id)
	require.NoError(y, err)
	y.kill(task)
	exit, err := y.tasks.Delete(y.ctx, id)
	require.NoError(y, err)
	return exit
}

// box creates and starts a sandbox that is in the store.
func (y *yard) box(id string) sandbox.ControllerInstance {
	y.Helper()
	y.sandboxes.add(id)
	require.NoError(y, y.boxes.Create(y.ctx, sandboxOf(y, id), sandbox.WithNetNSPath("/proc/1/ns/net"),
		sandbox.WithAnnotations(map[string]string{"a": "b"})))
	i, err := y.boxes.Start(y.ctx, id)
	require.NoError(y, err)
	return i
}

func sandboxOf(y *yard, id string) sandbox.Sandbox {
	return sandbox.Sandbox{ID: id, Runtime: sandbox.RuntimeOpts{Name: y.shim.Path}, Spec: anyOf(y, args("sleep"))}
}
