// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// hold keeps the directory of a warm shim from being removed, by a mount in it, until let is called.
func (y *yard) hold(dir string) (let func()) {
	y.Helper()
	if os.Getuid() != 0 {
		y.Skip("mounting needs root")
	}
	held := filepath.Join(dir, "held")
	require.NoError(y, os.Mkdir(held, 0o700))
	require.NoError(y, unix.Mount("tmpfs", held, "tmpfs", 0, "size=4k"))
	y.Cleanup(func() { _ = unix.Unmount(held, unix.MNT_DETACH) })
	return func() { require.NoError(y, unix.Unmount(held, 0)) }
}

// failures hears of removals that have failed.
type failures struct{ ids chan string }

func (f failures) Levels() []logrus.Level { return []logrus.Level{logrus.WarnLevel} }

func (f failures) Fire(e *logrus.Entry) error {
	if id, is := e.Data["id"].(string); is && strings.Contains(e.Message, "it is tried again until it succeeds") {
		f.ids <- id
	}
	return nil
}

// removalFails waits until the removal of what a warm shim has left has failed, after what do has caused it.
func (y *yard) removalFails(id string, do func()) {
	y.Helper()
	f := failures{make(chan string, 8)}
	logger := log.L.Logger
	before := logger.ReplaceHooks(logrus.LevelHooks{})
	defer logger.ReplaceHooks(before)
	logger.AddHook(f)
	level := log.GetLevel()
	require.NoError(y, log.SetLevel("warn"))
	defer func() { require.NoError(y, log.SetLevel(level.String())) }()
	do()
	select {
	case failed := <-f.ids:
		require.Equal(y, id, failed)
	case <-time.After(time.Minute):
		require.Fail(y, "no removal has failed")
	}
}

// TestLeftoversOfAWarmShim: what cannot be removed when a warm shim has ended is removed by the same daemon as soon as
// it can be, not by one that is started some day.
func TestLeftoversOfAWarmShim(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 10})
	y.pooled("c1")
	y.spares(1)
	id := y.idle()[0]
	dir := y.path("state", "."+id)
	let := y.hold(dir)
	y.removalFails(id, func() { y.killShim(id) })
	require.DirExists(t, dir)
	let()
	y.gone(id)
	y.remove("c1")
}

// TestLeftoversOfALaunch: the same for what a boot finds of a launch that a crash cut short.
func TestLeftoversOfALaunch(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 10})
	require.NoError(t, y.m.awaitReady(y.ctx)) // or the restore of this daemon finds what is made here
	d, err := y.m.config.Tasks.layout().CreateWarm()
	require.NoError(t, err)
	let := y.hold(d.Path)
	y.removalFails(d.ID, func() { y.restart() })
	require.DirExists(t, d.Path)
	let()
	y.gone(d.ID)
	y.noPool()
	y.empty()
}
