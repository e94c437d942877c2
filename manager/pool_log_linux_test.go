// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/inspect"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// openFifos counts the fifos that this process has open.
func openFifos(t *testing.T) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && filepath.Base(to) == "log" {
			n++
		}
	}
	return n
}

// says writes a line as the shim of a task would, and waits until it is known as the task's.
func (y *yard) says(id, line string) {
	y.Helper()
	f, err := os.OpenFile(filepath.Join(y.bundle(id), "log"), os.O_WRONLY, 0)
	require.NoError(y, err)
	defer f.Close()
	_, err = f.WriteString(line + "\n")
	require.NoError(y, err)
	y.until("the line has come", func() bool {
		lines := inspected[inspect.LogsResponse](y, &inspect.LogsRequest{Namespace: testNamespace, ID: id}).Lines
		return len(lines) > 0 && lines[len(lines)-1].Text == line
	})
}

// TestLogsOfIdleShims are closed: a container leaves no descriptor of the daemon's, and is heard as any other when it
// has a shim that was idle, also after a crash. Upstream's TestShimDoesNotLeakPipes wants that.
func TestLogsOfIdleShims(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	before := openFifos(t)
	for n, id := range []string{"c1", "c2", "c3"} {
		if n == 2 {
			y.crash()
			y.spares(2)
			require.Equal(t, before, openFifos(t))
		}
		y.pooled(id)
		y.says(id, "said by the shim of "+id)
		y.spares(1)
		require.Equal(t, 2, y.starts(), "all but the first have a shim that was idle")
		require.Equal(t, before+1, openFifos(t))
		y.remove(id)
		y.spares(2)
		require.Equal(t, before, openFifos(t))
	}
}

// TestLogOfASharedShim stays open: another task may be about to take the shim.
func TestLogOfASharedShim(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100, Share: 2})
	y.pooled("c1")
	y.pooled("c2")
	y.remove("c1")
	y.says("c2", "still here")
	y.remove("c2")
	y.pooled("c3")
	y.says("c3", "here, too")
	y.remove("c3")
}

// TestWarmShimWithoutALog: one whose log cannot be opened is given to nobody.
func TestWarmShimWithoutALog(t *testing.T) {
	y := poolYard(t, shimtest.Scenario{}, PoolConfig{Warm: 1, Reuse: 100})
	y.pooled("c1")
	y.spares(1)
	w := y.m.pool.account.Waiting()[0]
	require.NoError(t, os.Remove(w.dir.LogPath()))
	require.NoError(t, os.WriteFile(w.dir.LogPath(), nil, 0o600))
	y.pooled("c2")
	require.NotSame(t, w, y.warm("c2"))
	y.says("c2", "another's")
	y.until("it has ended", func() bool { return !w.p.Verified().Alive() })
	y.remove("c1")
	y.remove("c2")
}
