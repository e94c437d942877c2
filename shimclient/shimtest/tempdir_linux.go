// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	sharedMemory = "/dev/shm"
	enoughMemory = 1 << 30 // bytes
)

// tempInMemory makes the directories of tests be on a tmpfs, as a daemon's state is, unless TMPDIR says where they are
// to be. A test writes hundreds of small files, and a disk that is busy with something else makes it several times as
// slow.
func tempInMemory() {
	if os.Getenv("TMPDIR") == "" && inMemory(sharedMemory) {
		_ = os.Setenv("TMPDIR", sharedMemory)
	}
}

// inMemory says whether a directory is on a tmpfs on which files can be made and executed, with room for them.
func inMemory(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || st.Type != unix.TMPFS_MAGIC || st.Flags&(unix.ST_NOEXEC|unix.ST_RDONLY) != 0 {
		return false
	}
	return st.Bavail*uint64(st.Bsize) >= enoughMemory && unix.Access(dir, unix.W_OK|unix.X_OK) == nil
}
