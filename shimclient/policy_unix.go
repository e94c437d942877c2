// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/pkg/errors"
)

// othersMayWrite are the bits that let others than the owner change a file, or the entries of a directory.
const othersMayWrite fs.FileMode = 0o022

// checkOwners returns what lets others than root and the daemon's user replace the file at path: the owner or mode of
// the file, or of any directory on the way to it, that of links included.
func checkOwners(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return errors.WithStack(err)
	}
	if err := checkOwner(real); err != nil {
		return err
	}
	ways := []string{path}
	if real != path {
		ways = append(ways, real)
	}
	for _, of := range ways {
		for entry := of; entry != filepath.Dir(entry); entry = filepath.Dir(entry) {
			if err := checkEntry(entry); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkEntry looks at the directory that has an entry of a path. In one with the sticky bit, as /tmp has it, others may
// make entries and replace only their own: there it is the entry's owner that counts, of a link the link's.
func checkEntry(entry string) error {
	dir := filepath.Dir(entry)
	info, err := os.Stat(dir)
	if err != nil {
		return errors.WithStack(err)
	}
	if info.Mode()&fs.ModeSticky == 0 {
		return checkInfo(dir, info)
	}
	if err := checkUser(dir, info); err != nil {
		return err
	}
	if info, err = os.Lstat(entry); err != nil {
		return errors.WithStack(err)
	}
	return checkUser(entry, info)
}

// checkOwner looks at one file or directory. A link in the path itself is judged by the directory that it is in; where
// it leads, by its own.
func checkOwner(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return errors.WithStack(err)
	}
	return checkInfo(path, info)
}

// checkInfo is checkOwner of what was looked at already.
func checkInfo(path string, info fs.FileInfo) error {
	if err := checkUser(path, info); err != nil {
		return err
	}
	// The group of root counts as root: Debian's /usr/local is root:staff, and only the group's number tells the two
	// apart.
	open := othersMayWrite
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Gid == 0 {
		open &^= 0o020
	}
	if mode := info.Mode().Perm(); mode&open != 0 {
		return errors.Errorf("%s can be written to by others (mode %04o)", path, mode)
	}
	return nil
}

// checkUser: only root and the daemon's user may own it.
func checkUser(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.Errorf("cannot tell the owner of %s", path)
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return errors.Errorf("%s belongs to the user %d", path, st.Uid)
	}
	return nil
}
