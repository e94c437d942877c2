// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

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

// TestCVE202653495: calls that their clients give up leave nothing behind in the daemon.
func TestCVE202653495(t *testing.T) {
	y := newYard(t, shimtest.Scenario{})
	task := y.run("c1", "sleep")
	cancelled, cancel := context.WithCancel(y.ctx)
	cancel()
	calls := func(n int) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range n / 8 {
					_, _ = task.State(cancelled)
					_, _ = task.Pids(cancelled)
					_, _ = task.Wait(cancelled)
					_ = task.Kill(cancelled, 0, false)
				}
			})
		}
		wg.Wait()
	}
	calls(80) // whatever is made once
	before := runtime.NumGoroutine()
	calls(10_000)
	y.until("no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+2 })
	released := make(chan struct{})
	func() {
		kept := new([64]byte)
		runtime.AddCleanup(kept, func(ch chan struct{}) { close(ch) }, released)
		_, _ = task.Wait(context.WithValue(cancelled, keptKey{}, kept))
	}()
	y.until("nothing refers to a Wait that was given up", func() bool {
		runtime.GC()
		return isClosed(released)
	})
	y.kill(task)
	y.remove("c1")
	y.empty()
}
