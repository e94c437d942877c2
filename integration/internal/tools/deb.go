// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pkg/errors"
)

// ErrNoPackage says that a program comes out of a Debian package and that this
// machine cannot download Debian packages. Tests skip on it.
var ErrNoPackage = errors.New("the package cannot be downloaded here")

// Unavailable reports whether err says so.
func Unavailable(err error) bool { return errors.Is(err, ErrNoPackage) }

// fromDeb takes the file at path out of the newest version of a Debian package,
// together with the files beside it. Nothing is installed.
func (t *Tools) fromDeb(name, pkg, path string) (string, error) {
	dst := filepath.Join(t.Dir, name)
	t.mu.Lock()
	defer t.mu.Unlock()
	if isFile(dst) {
		return dst, nil
	}
	defer t.progress("unpacking the Debian package %s", pkg)()

	tmp, err := os.MkdirTemp(t.Dir, ".deb-")
	if err != nil {
		return "", errors.Wrapf(err, "cannot unpack %s", pkg)
	}
	defer os.RemoveAll(tmp)
	if err := download(pkg, tmp); err != nil {
		return "", err
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return "", errors.Wrapf(ErrNoPackage, "%s: apt-get download left %d files", pkg, len(debs))
	}
	if err := run(tmp, "dpkg-deb", "-x", debs[0], "root"); err != nil {
		return "", err
	}
	return dst, place(filepath.Dir(filepath.Join(tmp, "root", path)), filepath.Base(path), dst)
}

// download asks apt for the package, with fresh lists where the first try
// fails.
func download(pkg, dir string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errors.Wrapf(ErrNoPackage, "%s: no apt-get", pkg)
	}
	err := run(dir, "apt-get", "download", pkg)
	if err == nil {
		return nil
	}
	if uerr := run(dir, "apt-get", "update"); uerr != nil {
		return errors.Wrapf(ErrNoPackage, "%v; then %v", err, uerr)
	}
	if err := run(dir, "apt-get", "download", pkg); err != nil {
		return errors.Wrap(ErrNoPackage, err.Error())
	}
	return nil
}

// place moves file, as dst, out of src; where dst has a directory of its own,
// the programs beside it come too (a CNI plugin has siblings).
func place(src, file, dst string) error {
	dir := filepath.Dir(dst)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return errors.Wrapf(err, "cannot make a directory for %s", dst)
	}
	if file != filepath.Base(dst) {
		return errors.Errorf("cannot place %s as %s: the name must stay", file, dst)
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return errors.Wrapf(err, "cannot find %s in its package", file)
	}
	for _, e := range entries {
		if e.Name() == file || filepath.Base(dir) == "cni" {
			if err := os.Rename(filepath.Join(src, e.Name()), filepath.Join(dir, e.Name())); err != nil {
				return errors.Wrapf(err, "cannot put %s in place", e.Name())
			}
		}
	}
	return nil
}

func run(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return errors.Wrapf(err, "%s %v: %s", name, args, out)
}
