// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pkg/errors"
)

// othersMayWrite are the bits that let others than the owner change a file, or the entries of a directory.
const othersMayWrite fs.FileMode = 0o022

// maxLinks is how many links one path may lead through, as the kernel counts them.
const maxLinks = 40

// checkOwners returns what lets others than root and the daemon's user replace the file at path: the owner or mode of
// the file, or of any directory that has a step of the way to it. It goes as the kernel does, a name at a time, since
// each link on the way, and each that a link leads to, is as good as the directory that it is in.
func checkOwners(path string) error {
	if !filepath.IsAbs(path) {
		return errors.Errorf("%q is no absolute path", path)
	}
	root, err := lookAt("/")
	if err != nil {
		return err
	}
	at, rest, links := root, steps(path), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == ".." { // at is what no link leads to, so its parent is the one that its path names
			if at, err = lookAt(filepath.Dir(at.path)); err != nil {
				return err
			}
			continue
		}
		next, err := at.enter(name)
		if err != nil {
			return err
		}
		if next.info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return errors.Errorf("%s leads through too many links", path)
		}
		to, err := os.Readlink(next.path)
		if err != nil {
			return errors.WithStack(err)
		}
		if filepath.IsAbs(to) {
			at = root
		}
		rest = append(steps(to), rest...)
	}
	return checkInfo(at.path, at.info)
}

// steps are the names that a path goes through; "." and nothing between two slashes are none.
func steps(path string) (names []string) {
	for _, name := range strings.Split(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

// step is what is at a path in which nothing but the last name may be a link.
type step struct {
	path string
	info fs.FileInfo
}

func lookAt(path string) (step, error) {
	info, err := os.Lstat(path)
	return step{path, info}, errors.WithStack(err)
}

// enter looks at an entry of the directory, and returns an error if others may replace it. In a directory with the
// sticky bit, as /tmp has it, others may make entries and replace only their own: there it is the entry's owner that
// counts, of a link the link's.
func (dir step) enter(name string) (step, error) {
	next, err := lookAt(filepath.Join(dir.path, name))
	if err != nil {
		return step{}, err
	}
	if dir.info.Mode()&fs.ModeSticky == 0 {
		return next, checkInfo(dir.path, dir.info)
	}
	if err := checkUser(dir.path, dir.info); err != nil {
		return step{}, err
	}
	return next, checkUser(next.path, next.info)
}

// checkInfo looks at a file or a directory that is no link.
func checkInfo(path string, info fs.FileInfo) error {
	if err := checkUser(path, info); err != nil {
		return err
	}
	mode := info.Mode().Perm()
	open := mode & othersMayWrite
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Gid == 0 && open == 0o020 {
		// The group of root counts as root. But where there is an access list the group's bits are its mask, that is
		// what any user may have whom it names.
		listed, err := hasAccessList(path)
		if err != nil {
			return errors.Wrapf(err, "cannot tell whether %s has an access list", path)
		}
		if !listed {
			return nil
		}
		return errors.Errorf("%s has an access list that may let others write to it (mode %04o)", path, mode)
	}
	if open != 0 {
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
