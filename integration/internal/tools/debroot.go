// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
)

// DebianRoot is a directory with the files of some Debian packages, as a file system that is to be laid over a
// machine's.
type DebianRoot struct {
	Name     string
	Packages []string
	// Links are symbolic links that installing the packages would make, by path.
	Links map[string]string
}

// Unpack downloads the packages, without those that they depend on, and unpacks them. Nothing is installed. It
// returns the directory.
func (t *Tools) Unpack(r DebianRoot) (string, error) {
	dst := filepath.Join(t.Dir, "debian", r.Name)
	stamp, want := dst+".packages", strings.Join(r.Packages, "\n")
	t.mu.Lock()
	defer t.mu.Unlock()
	if have, err := os.ReadFile(stamp); err == nil && string(have) == want {
		return dst, nil
	}
	defer t.progress("unpacking the Debian packages %v", r.Packages)()
	for _, old := range []string{stamp, dst} {
		if err := os.RemoveAll(old); err != nil {
			return "", errors.Wrap(err, "cannot remove what was unpacked before")
		}
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return "", errors.Wrap(err, "cannot make a directory for packages")
	}
	tmp, err := os.MkdirTemp(t.Dir, ".deb-")
	if err != nil {
		return "", errors.Wrap(err, "cannot unpack packages")
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil { // apt downloads as a user of its own
		return "", errors.Wrap(err, "cannot unpack packages")
	}
	root := filepath.Join(tmp, "root")
	if err := unpackAll(tmp, root, r.Packages); err != nil {
		return "", err
	}
	if err := merge(root); err != nil {
		return "", err
	}
	for path, target := range r.Links {
		if err := os.Symlink(target, filepath.Join(root, path)); err != nil {
			return "", errors.Wrap(err, "cannot make a link between packages")
		}
	}
	if err := os.Rename(root, dst); err != nil {
		return "", errors.Wrap(err, "cannot put packages in place")
	}
	return dst, errors.Wrap(os.WriteFile(stamp, []byte(want), 0o644), "cannot note what was unpacked")
}

func unpackAll(tmp, root string, packages []string) error {
	for _, pkg := range packages {
		if err := download(pkg, tmp); err != nil {
			return err
		}
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb")) // the pattern is well-formed
	if len(debs) != len(packages) {
		return errors.Wrapf(ErrNoPackage, "%v: apt-get download left %d files", packages, len(debs))
	}
	for _, deb := range debs {
		if err := run(tmp, "dpkg-deb", "-x", deb, root); err != nil {
			return err
		}
	}
	return nil
}

// merge moves what is in the directories of / that are links to those of /usr on the machine: as directories they
// would hide the links.
func merge(root string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if fi, err := os.Lstat("/" + name); err != nil || fi.Mode()&os.ModeSymlink == 0 {
			continue
		}
		dir := filepath.Join(root, name)
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err != nil || path == dir {
				return err
			}
			to := filepath.Join(root, "usr", strings.TrimPrefix(path, root))
			if e.IsDir() {
				return os.MkdirAll(to, 0o755)
			}
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			return os.Rename(path, to)
		})
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err != nil && !os.IsNotExist(err) {
			return errors.Wrapf(err, "cannot merge /%s of packages into /usr", name)
		}
	}
	return nil
}
