// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// noTask checks that the task is unknown, and that its id can be used.
func (b *box) noTask() {
	t := b.n.t
	t.Helper()
	_, err := b.Task(b.ctx, nil)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.Eventually(t, func() bool { // what is undone slowly is undone in the background
		_, err := os.Lstat(b.n.Bundle(b.namespace(), b.ID()))
		return os.IsNotExist(err)
	}, patience, tick)
}

func TestMissingBinaryInContainer(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	log := n.watch()
	b := n.create("missing", spec("/no/such/thing"))
	_, err := b.NewTask(n.ctx, cio.NullIO)
	require.ErrorContains(t, err, "/no/such/thing")
	b.noTask()
	b.remove()
	require.Empty(t, log.topics("missing"), "nothing was created")

	j := n.run("missing", forever()) // the same id, at once
	j.finish()
}

func TestRuncMissing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	b := n.create("norunc", forever(), withOptions(func(o *options.Options) { o.BinaryName = "/no/such/runc" }))
	_, err := b.NewTask(n.ctx, cio.NullIO)
	require.ErrorContains(t, err, "/no/such/runc")
	b.noTask()
	b.remove()
}

func TestRuntimeMissing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, c := range []struct{ runtime, names string }{
		{"io.containerd.missing.v1", "containerd-shim-missing-v1"},
		{"/no/such/shim", "/no/such/shim"},
		{"malformed", "malformed"},
	} {
		b := n.create("noshim", forever(), withRuntime(c.runtime), func(s *setup) { s.options = nil })
		_, err := b.NewTask(n.ctx, cio.NullIO)
		require.ErrorContains(t, err, c.names)
		b.noTask()
		b.remove()
	}
}

func TestMalformedSpec(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for name, text := range map[string]string{
		"nothing":      ``,
		"no-json":      `{"ociVersion":`,
		"empty-object": `{}`,
		"wrong-type":   `{"ociVersion":"1.2.0","linux":"none"}`,
		"no-process":   `{"ociVersion":"1.2.0","root":{"path":"rootfs"}}`,
		"bad-namespace": `{"ociVersion":"1.2.0","root":{"path":"rootfs"},"process":{"args":["true"],"cwd":"/"},
			"linux":{"namespaces":[{"type":"nothing"}]}}`,
	} {
		b := n.create(name, forever())
		n.setSpec(b, text)
		_, err := n.Client().TaskService().Create(n.ctx, &tasks.CreateTaskRequest{ContainerID: b.ID()})
		require.Error(t, err, name)
		b.noTask()
		b.remove()
	}
}

// rawSpec is a spec of any text.
type rawSpec struct{ url, text string }

func (r rawSpec) GetTypeUrl() string { return r.url }
func (r rawSpec) GetValue() []byte   { return []byte(r.text) }

// setSpec replaces a container's spec by any text.
func (n *node) setSpec(b *box, text string) {
	n.t.Helper()
	info, err := b.Info(n.ctx)
	require.NoError(n.t, err)
	var any typeurl.Any = rawSpec{url: info.Spec.GetTypeUrl(), text: text}
	_, err = n.Client().ContainerService().Update(n.ctx, containers.Container{ID: b.ID(), Spec: any}, "spec")
	require.NoError(n.t, err)
}

// A shim that cannot be executed, and one that answers nonsense.
func TestBrokenShims(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for name, script := range map[string]string{
		"no-format": "\x00\x01nothing that the kernel runs",
		"fails":     "#!/bin/sh\necho 'this shim is broken' >&2\nexit 1\n",
		"silent":    "#!/bin/sh\nexit 0\n",
		"nonsense":  "#!/bin/sh\necho 'no address at all'\n",
		"nobody":    "#!/bin/sh\nfor arg; do [ \"$arg\" = delete ] && exit 0; done\nprintf 'unix://" + n.Dir + "/nobody'\n",
	} {
		path := filepath.Join(n.Dir, "shim-"+name)
		require.NoError(t, os.WriteFile(path, []byte(script), 0o755))
		b := n.create(name, forever(), withRuntime(path), func(s *setup) { s.options = nil })
		_, err := b.NewTask(n.ctx, cio.NullIO)
		require.Error(t, err, name)
		if name == "fails" {
			require.ErrorContains(t, err, "this shim is broken")
		}
		b.noTask()
		b.remove()
	}
}

// Whenever a caller goes away, the create is either undone or a task that can
// be deleted.
func TestCreateCancelled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const rounds, workers = 200, 4
	// The span that the points are drawn from follows what creates take under
	// this load, so that one in three gets through.
	var span, made, left atomic.Int64
	span.Store(int64(n.timeToCreate()))
	var g errgroup.Group
	g.SetLimit(workers)
	for i := range rounds {
		g.Go(func() error {
			b, err := n.tryCreate(fmt.Sprint("cancelled-", i), forever())
			if err != nil {
				return err
			}
			now := span.Load()
			ctx, cancel := withCancelAfter(n.ctx, time.Duration(rand.Int64N(now)))
			defer cancel()
			if _, err = b.NewTask(ctx, cio.NullIO); err == nil {
				made.Add(1)
				span.Add(-now / 25)
			} else {
				left.Add(1)
				span.Add(now / 50)
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	t.Logf("%d created, %d cancelled", made.Load(), left.Load())
	require.NotZero(t, left.Load())
	n.deleteEverything()
}

// timeToCreate measures creates, as many at once as the callers make, to choose
// points within one.
func (n *node) timeToCreate() time.Duration {
	n.t.Helper()
	const workers = 4
	var took [workers]time.Duration
	var jobs [workers]*job
	var g errgroup.Group
	for i := range workers {
		b := n.create(fmt.Sprint("typical-", i), forever())
		g.Go(func() error {
			start := time.Now()
			task, err := b.NewTask(n.ctx, cio.NullIO)
			took[i] = time.Since(start)
			jobs[i] = &job{Task: task, b: b}
			return err
		})
	}
	require.NoError(n.t, g.Wait())
	var sum time.Duration
	for i, j := range jobs {
		sum += took[i]
		j.finish()
	}
	return sum / workers
}

// deleteEverything deletes all tasks and containers. A create whose caller went
// away may still be on its way, so it looks until there is nothing.
func (n *node) deleteEverything() {
	n.t.Helper()
	tasksOf := n.Client().TaskService()
	require.Eventually(n.t, func() bool {
		list, err := tasksOf.List(n.ctx, &tasks.ListTasksRequest{})
		require.NoError(n.t, err)
		for _, p := range list.Tasks {
			_, _ = tasksOf.Kill(n.ctx, &tasks.KillRequest{ContainerID: p.ID, Signal: 9, All: true})
			_, _ = tasksOf.Wait(n.ctx, &tasks.WaitRequest{ContainerID: p.ID})
			_, _ = tasksOf.Delete(n.ctx, &tasks.DeleteTaskRequest{ContainerID: p.ID})
		}
		bundles, _ := filepath.Glob(n.Bundle(testNS, "*"))
		return len(list.Tasks)+len(bundles) == 0
	}, patience, tick)
	all, err := n.Client().Containers(n.ctx)
	require.NoError(n.t, err)
	for _, c := range all {
		(&box{Container: c, n: n, ctx: n.ctx}).remove()
	}
}
