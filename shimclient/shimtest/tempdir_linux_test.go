// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestTempInMemory: only a tmpfs with room, on which a shim can be executed, takes the place of the usual directory.
func TestTempInMemory(t *testing.T) {
	require.False(t, inMemory("/nowhere"))
	require.False(t, inMemory("/proc"))
	if os.Getuid() != 0 {
		t.Skip("only root can mount; run the tests as root to include the rest")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2g"))
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	for _, c := range []struct {
		name  string
		flags uintptr
		size  string
		want  bool
	}{{"as it should be", 0, "2g", true}, {"small", 0, "1m", false}, {"noexec", unix.MS_NOEXEC, "2g", false},
		{"read-only", unix.MS_RDONLY, "2g", false}} {
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|c.flags, "size="+c.size), c.name)
		require.Equal(t, c.want, inMemory(dir), c.name)
	}
}
