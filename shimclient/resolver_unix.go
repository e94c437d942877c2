// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

func identifyFile(path string) (FileID, error) {
	var st unix.Stat_t
	if _, err := retried(func() (int, error) { return 0, unix.Stat(path, &st) }); err != nil {
		return FileID{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return FileID{
		dev:   uint64(st.Dev), //nolint:unconvert // signed, or narrower, on some platforms
		inode: uint64(st.Ino), //nolint:unconvert // likewise
		size:  st.Size,
		mtime: st.Mtim.Nano(),
		ctime: st.Ctim.Nano(),
	}, nil
}
