// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package plugin

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChooseSocketDir(t *testing.T) {
	base, err := os.MkdirTemp("/tmp", "sy")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(base)) })

	uid, root := os.Geteuid(), os.Geteuid() == 0
	if root {
		uid = 4711
	}
	id := strconv.Itoa(uid)
	n := 0
	// state, xdg, run and tmp of a new machine.
	machine := func() (string, string, string, string) {
		n++
		at := filepath.Join(base, strconv.Itoa(n))
		return at + "/c", at + "/x", at + "/r", at + "/t"
	}
	mine := func(dir string, perm os.FileMode) string {
		require.NoError(t, os.MkdirAll(dir, 0o700))
		require.NoError(t, os.Chmod(dir, perm))
		if root {
			require.NoError(t, os.Chown(dir, uid, -1))
		}
		return dir
	}
	// A file where a directory would have to be made stops even root.
	blocked := func(path string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
	}

	state, xdg, run, tmp := machine()
	require.Equal(t, state+"/s", chooseSocketDir(0, xdg, state, run, tmp), "root takes the state dir")
	require.NoDirExists(t, state, "and leaves it to the shim to make it")

	want := mine(state+"/s", 0o755)
	require.Equal(t, want, chooseSocketDir(uid, xdg, state, run, tmp))
	fi, err := os.Stat(want)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), fi.Mode().Perm())

	state, xdg, run, tmp = machine()
	blocked(state)
	want = mine(xdg+"/containerd/s", 0o700)
	require.Equal(t, want, chooseSocketDir(uid, xdg, state, run, tmp))
	mine(run+"/"+id+"/containerd/s", 0o700)
	require.Equal(t, run+"/"+id+"/containerd/s", chooseSocketDir(uid, "", state, run, tmp), "no XDG_RUNTIME_DIR")

	state, xdg, run, tmp = machine()
	blocked(state)
	blocked(run)
	require.NoError(t, os.MkdirAll(tmp, 0o700))
	require.NoError(t, os.Symlink(mine(xdg, 0o700), tmp+"/containerd-s-"+id))
	require.Empty(t, chooseSocketDir(uid, "", state, run, tmp),
		"a link is not taken, somebody else may have put it there")
	require.NoError(t, os.Remove(tmp+"/containerd-s-"+id))
	want = mine(tmp+"/containerd-s-"+id, 0o700)
	require.Equal(t, want, chooseSocketDir(uid, "", state, run, tmp))

	long := base + "/" + strings.Repeat("l", maxSocketDirLen)
	mine(long+"/containerd/s", 0o700)
	require.Equal(t, want, chooseSocketDir(uid, long, state, run, tmp),
		"a directory too long for sockets is passed over")

	if root {
		state, xdg, run, tmp = machine()
		require.NoError(t, os.MkdirAll(tmp+"/containerd-s-"+id, 0o700))
		require.Empty(t, chooseSocketDir(uid, xdg, state, run, tmp), "directories of somebody else are not taken")
	}
}
