// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/typeurl/v2"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// TestCVE202653489: a checkpoint's rootfs diff is unpacked below the rootfs, wherever the links in it lead.
func TestCVE202653489(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("unpacking an archive needs root")
	}
	dir := t.TempDir()
	host := filepath.Join(dir, "host")
	require.NoError(t, os.Mkdir(host, 0o700))
	l := bundle.Layout{State: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root")}
	require.NoError(t, l.Init(0o711))
	d, err := l.Create(testNamespace, "c1", bundle.CreateOptions{Spec: []byte("{}")})
	require.NoError(t, err)

	diff := filepath.Join(dir, rootfsDiff)
	f, err := os.Create(diff)
	require.NoError(t, err)
	w := tar.NewWriter(f)
	write := func(h tar.Header, body string) {
		h.Size = int64(len(body))
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(body))
		require.NoError(t, err)
	}
	write(tar.Header{Name: "absolute", Typeflag: tar.TypeSymlink, Linkname: host, Mode: 0o777}, "")
	write(tar.Header{Name: "absolute/evil", Typeflag: tar.TypeReg, Mode: 0o644}, "x")
	write(tar.Header{Name: "up", Typeflag: tar.TypeSymlink, Linkname: "../../../../host", Mode: 0o777}, "")
	write(tar.Header{Name: "up/evil", Typeflag: tar.TypeReg, Mode: 0o644}, "x")
	write(tar.Header{Name: "../../../../host/evil", Typeflag: tar.TypeReg, Mode: 0o644}, "x")
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())

	i := newInstance(memManager(t), l, life.Task, testNamespace, "c1", life.Launching)
	i.bundle = d
	_ = i.applyDiff(t.Context(), diff) // refused, or kept below the rootfs
	entries, err := os.ReadDir(host)
	require.NoError(t, err)
	require.Empty(t, entries, "something was written outside of the rootfs")
}

// TestCVE202653489Diff: the rootfs diff of a checkpoint is an archive itself. A link to one that is elsewhere on the
// host is not followed, and a fifo is not waited for.
func TestCVE202653489Diff(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	image := y.path("archive", "checkpoint")
	require.NoError(t, os.MkdirAll(image, 0o700))
	diff := filepath.Join(image, "..", rootfsDiff)
	secret := filepath.Join(y.dir, "secret.tar")
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "secret", Mode: 0o644, Typeflag: tar.TypeReg}))
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(secret, archive.Bytes(), 0o600))
	o := y.opts("sleep")
	o.Checkpoint, o.RestoreFromPath = image, true
	for name, put := range map[string]func() error{
		"a link": func() error { return os.Symlink(secret, diff) },
		"a fifo": func() error { return unix.Mkfifo(diff, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, put())
			_, err := y.tasks.Create(y.ctx, "c1", o)
			require.ErrorIs(t, err, bundle.ErrNotRegular)
			require.ErrorContains(t, err, diff)
			require.NoError(t, os.Remove(diff))
			y.empty()
		})
	}
}

// keptKey is where a context has what goes with it.
type keptKey struct{}

// givenUp are calls about a task and an exec of it, by the RPC that they send. n tells one round of them from another.
func givenUp(task runtime.Task, exec runtime.ExecProcess, process *anypb.Any, n int) map[string]func(context.Context) {
	return map[string]func(context.Context){
		"State": func(ctx context.Context) { _, _ = task.State(ctx); _, _ = exec.State(ctx) },
		"Pids":  func(ctx context.Context) { _, _ = task.Pids(ctx) },
		"Wait":  func(ctx context.Context) { _, _ = task.Wait(ctx); _, _ = exec.Wait(ctx) },
		"Kill":  func(ctx context.Context) { _ = task.Kill(ctx, 0, false); _ = exec.Kill(ctx, 0, false) },
		"Exec": func(ctx context.Context) {
			_, _ = task.Exec(ctx, fmt.Sprintf("x%d", n), runtime.ExecOpts{Spec: process})
		},
	}
}

// TestCVE202653495: calls that their clients give up leave nothing behind in the daemon, and those that a shim which
// does not answer has in its hands go as soon as it does.
func TestCVE202653495(t *testing.T) {
	y := newYard(t, shimtest.Scenario{Sandbox: true})
	y.box("box")
	y.start("c1", y.inBox("box"))
	task := mustGet(y, "c1")
	exec, process := y.exec(task, "e1", "sleep"), typeurl.MarshalProto(anyOf(y, args("sleep").Process))
	give := func(patience time.Duration, call func(context.Context)) {
		ctx, cancel := context.WithTimeout(y.ctx, patience)
		defer cancel()
		call(ctx)
	}
	calls := func(rounds int, patience time.Duration) {
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for n := range rounds / 8 {
					for _, call := range givenUp(task, exec, process, 8*n+worker) {
						give(patience, call)
					}
				}
			})
		}
		wg.Wait()
	}
	creates := func() {
		var wg sync.WaitGroup
		opts := y.inBox("box")
		for n := range 32 {
			wg.Go(func() {
				give(50*time.Millisecond, func(ctx context.Context) { // it takes some steps to the shim
					_, _ = y.tasks.Create(ctx, fmt.Sprintf("n%d", n), opts)
				})
			})
		}
		wg.Wait()
	}
	calls(8, 100*time.Millisecond) // whatever is made once
	before, from := goruntime.NumGoroutine(), len(y.shim.Trace())
	cont := y.stop("box")
	calls(1250, time.Millisecond) // eight in each round
	// It is being asked, and what it does not read is being sent.
	y.until("no goroutine waits in their place", func() bool { return goruntime.NumGoroutine() <= before+8 })
	creates()
	cont()
	for n := range 32 {
		y.until("a create that was given up is undone", func() bool { return y.instance(fmt.Sprintf("n%d", n)) == nil })
	}
	y.until("no goroutine is left", func() bool { return goruntime.NumGoroutine() <= before+2 })
	sent := make(map[string]bool)
	for _, e := range y.shim.Trace()[from:] {
		sent[e.Action] = sent[e.Action] || e.Kind == shimtest.KindRPC
	}
	for _, method := range []string{"Create", "State", "Pids", "Wait", "Kill", "Exec"} {
		require.True(t, sent[method], "no %s was under way when it was given up", method)
	}
	released := make(chan struct{})
	func() {
		kept := new([64]byte)
		goruntime.AddCleanup(kept, func(ch chan struct{}) { close(ch) }, released)
		ctx, cancel := context.WithTimeout(context.WithValue(y.ctx, keptKey{}, kept), time.Millisecond)
		defer cancel()
		_, _ = task.Wait(ctx)
	}()
	y.until("nothing refers to a Wait that was given up", func() bool {
		goruntime.GC()
		return isClosed(released)
	})
	y.remove("c1")
	require.NoError(t, y.boxes.Shutdown(y.ctx, "box"))
	y.empty()
}
