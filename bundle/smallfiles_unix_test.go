// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package bundle

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestReadDoesNotWaitForAFifo: it would hang whoever reads it, at boot the daemon.
func TestReadDoesNotWaitForAFifo(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	for name, read := range reads(b) {
		require.NoError(t, unix.Mkfifo(b.file(name), 0o600))
		require.ErrorIs(t, read(), ErrForeign, name)
		require.NoError(t, unix.Unlink(b.file(name)))
	}
	require.NoError(t, unix.Mkfifo(b.LogPath(), 0o700))
	require.NoError(t, b.Remove())
	requireNothing(t, l)
}
