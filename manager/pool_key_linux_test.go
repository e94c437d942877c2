// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"testing"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestWhatDoesNotShareAShim: whoever differs in something that a shim gets at its start gets another one.
func TestWhatDoesNotShareAShim(t *testing.T) {
	for name, c := range map[string]struct {
		change func(y *yard, o *runtime.CreateOpts)
	}{
		"another namespace": {func(y *yard,
			_ *runtime.CreateOpts) {
			y.ctx = namespaces.WithNamespace(context.Background(), "other")
		}},
		"another binary": {func(y *yard, _ *runtime.CreateOpts) { y.shim.Replace() }},
		"other options": {func(y *yard, o *runtime.CreateOpts) {
			o.RuntimeOptions = anyOf(y, &runcoptions.Options{BinaryName: "crun"})
		}},
		"another log level": {func(y *yard, _ *runtime.CreateOpts) {
			before := log.GetLevel()
			require.NoError(y, log.SetLevel("panic"))
			y.Cleanup(func() { _ = log.SetLevel(before.String()) })
		}},
		"another environment": {func(y *yard, _ *runtime.CreateOpts) {
			y.Setenv("SOMETHING", "else")
		}},
		"another umask": {func(y *yard, _ *runtime.CreateOpts) {
			setUmask(y.T, 0o027)
			y.m.pool.keys = new(warm.Keys) // what it has cached would be read again once it is old
		}},
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
			y.pooled("c1")
			y.remove("c1")
			y.spares(2)
			there := y.idle()
			o := y.runcOpts("sleep")
			c.change(y, &o)
			_, err := y.tasks.Create(y.ctx, "c2", o)
			require.NoError(t, err)
			ns, err := namespaces.NamespaceRequired(y.ctx)
			require.NoError(t, err)
			i := y.m.find(ns, "c2")
			require.NotNil(t, warmth(i.process()))
			require.NotContains(t, there, warmth(i.process()).dir.ID)
			y.kill(&Task{i: i})
			_, err = y.tasks.Delete(y.ctx, "c2")
			require.NoError(t, err)
		})
	}
}

// TestWhatNeverUsesThePool gets a shim of its own, which ends with it.
func TestWhatNeverUsesThePool(t *testing.T) {
	annotated := func(key, value string) func(*yard, *runtime.CreateOpts) {
		return func(y *yard, o *runtime.CreateOpts) {
			spec := args("sleep")
			spec.Annotations = map[string]string{key: value}
			o.Spec = anyOf(y, spec)
		}
	}
	for name, change := range map[string]func(*yard, *runtime.CreateOpts){
		"cgroup of the shim": func(y *yard, o *runtime.CreateOpts) {
			o.RuntimeOptions = anyOf(y, &runcoptions.Options{ShimCgroup: "/shims"})
		},
		"cgroup of the shim in the task's options": func(y *yard, o *runtime.CreateOpts) {
			o.TaskOptions = anyOf(y, &runcoptions.Options{ShimCgroup: "/shims"})
		},
		"group of runc's shim":          annotated(runcGroupLabel, "g1"),
		"group of its own name":         annotated(runcGroupLabel, "c1"),
		"container of a pod":            annotated("io.kubernetes.cri.sandbox-id", "p1"),
		"runtime that is not kept warm": func(y *yard, o *runtime.CreateOpts) { o.Runtime = y.shim.Path },
	} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
			o := y.runcOpts("sleep")
			change(y, &o)
			_, err := y.tasks.Create(y.ctx, "c1", o)
			require.NoError(t, err)
			require.Nil(t, warmth(y.instance("c1").process()))
			require.Empty(t, y.record("c1").Warm)
			require.Empty(t, y.warmDirs())
			y.remove("c1")
			y.empty()
			require.Equal(t, 1, y.starts())
			require.Empty(t, y.shim.Procs())
		})
	}
}

// TestPodOnAWarmShim: the first container of a pod takes one, the others join it, by the sandbox that the create names
// or by the name of its socket. When the first goes before them the process ends with the last.
func TestPodOnAWarmShim(t *testing.T) {
	for name, s := range map[string]shimtest.Scenario{"ttrpc": {}, "grpc": {Transport: "grpc"},
		"bare path": {Transport: "grpc", Socket: shimtest.Bare}} {
		t.Run(name, func(t *testing.T) {
			y := poolYard(t, s, PoolConfig{Warm: 1, Reuse: 100})
			y.sandboxes.add("pause")
			y.pause("pause")
			w := y.warm("pause")
			y.spares(1)
			_, err := y.tasks.Create(y.ctx, "byname", y.inPod("pause"))
			require.NoError(t, err)
			o := y.inPod("pause")
			o.SandboxID = "pause"
			_, err = y.tasks.Create(y.ctx, "byid", o)
			require.NoError(t, err)
			o.Address, o.Version = w.p.Endpoint.String(), 3
			_, err = y.tasks.Create(y.ctx, "byaddress", o)
			require.NoError(t, err)
			for _, id := range []string{"byname", "byid", "byaddress"} {
				require.Same(t, w.p, y.instance(id).process(), id)
				require.True(t, y.record(id).Joined, id)
			}
			require.Equal(t, 3, y.starts(), "the pause container's, a spare, and the one that was told the name")
			require.Len(t, y.daemons(), 2)
			if name == "ttrpc" {
				require.Equal(t, 1, y.connections("byname"))
			}
			y.remove("pause")
			y.removed("pause")
			require.NotContains(t, y.idle(), w.dir.ID)
			y.remove("byid")
			require.Equal(t, runtime.CreatedStatus, y.state(mustGet(y, "byname")).Status)
			y.remove("byname")
			y.remove("byaddress")
			y.removed("byid", "byname", "byaddress")
			y.gone(w.dir.ID)
			require.Len(t, y.idle(), 1)
		})
	}
}

// TestPodThatEndsInOrder: with its pause container going last the process serves again.
func TestPodThatEndsInOrder(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	y.pause("p1")
	w := y.warm("p1")
	y.spares(1) // the one that comes back last goes first
	_, err := y.tasks.Create(y.ctx, "c1", y.inPod("p1"))
	require.NoError(t, err)
	y.remove("c1")
	y.removed("c1")
	y.remove("p1")
	y.spares(2)
	require.Contains(t, y.idle(), w.dir.ID)
	y.pooled("c2")
	require.Same(t, w, y.warm("c2"))
	y.remove("c2")
}

// TestJoinOfAShimThatWentOn: a container of a pod that is gone does not come into the process that serves somebody else
// by now.
func TestJoinOfAShimThatWentOn(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	y.sandboxes.add("p1")
	y.pause("p1")
	w := y.warm("p1")
	y.spares(1)
	y.remove("p1")
	y.pooled("other")
	require.Same(t, w, y.warm("other"))

	o := y.inPod("p1")
	o.SandboxID, o.Address, o.Version = "p1", w.p.Endpoint.String(), 3
	_, err := y.tasks.Create(y.ctx, "late", o)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	y.removed("late")
	o.Address = ""
	_, err = y.tasks.Create(y.ctx, "late", o)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	y.removed("late")

	// A link that a crash has left: `start` still tells the process.
	require.NoError(t, y.m.launcher.LinkSocket(testNamespace, "p1", w.reply.Address))
	_, err = y.tasks.Create(y.ctx, "late", y.inPod("p1"))
	require.Error(t, err)
	y.removed("late")
	require.NoError(t, os.Remove(y.link("p1")))
	_, err = y.tasks.Create(y.ctx, "late", y.inPod("p1"))
	require.NoError(t, err)
	require.NotSame(t, w.p, y.instance("late").process())
	require.Nil(t, warmth(y.instance("late").process()))
	y.remove("late")
	require.Equal(t, runtime.RunningStatus, y.state(mustGet(y, "other")).Status)
	y.remove("other")
	require.Contains(t, y.idle(), w.dir.ID)
}

// pause creates the first container of a pod.
func (y *yard) pause(id string) {
	y.Helper()
	_, err := y.tasks.Create(y.ctx, id, y.inPod(id))
	require.NoError(y, err)
}

// inPod are the options of a container of a pod, of the runtime that is kept warm.
func (y *yard) inPod(pod string) runtime.CreateOpts {
	y.Helper()
	o := y.grouped(pod)
	o.Runtime = plugins.RuntimeRuncV2
	return o
}
