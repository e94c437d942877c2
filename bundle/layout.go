// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// privatePerm is the mode that Init enforces on directories that exist already.
const privatePerm fs.FileMode = 0o700

// Layout says where the bundles of one kind (tasks, or sandboxes) live. Both paths are absolute and differ.
type Layout struct {
	// State holds the bundles, as STATE/NAMESPACE/ID. It is usually on a tmpfs and empty after a reboot.
	State string
	// Root holds the work directories, as ROOT/NAMESPACE/ID. It survives a reboot.
	Root string
}

// Init makes both directories, with perm, where they are missing. Of a directory that exists, and of those of namespaces
// in it, others may not change the entries afterwards, whatever mode an earlier containerd or an operator gave it; where
// perm is 0700 it is made private again. What others may read of the rest stays so.
func (l Layout) Init(perm os.FileMode) error {
	if err := l.check(); err != nil {
		return err
	}
	for _, dir := range []string{l.Root, l.State} {
		if err := makeParents(dir, perm); err != nil {
			return errors.Wrapf(err, "cannot make directory %s", dir)
		}
		if perm == privatePerm {
			if err := os.Chmod(dir, perm); err != nil {
				return errors.Wrapf(err, "cannot make directory %s private", dir)
			}
		}
		if err := closeToOthers(dir); err != nil {
			return errors.Wrapf(err, "cannot close directory %s to others", dir)
		}
	}
	return nil
}

// closeToOthers keeps others from changing the entries of a directory, and of the directories in it.
func closeToOthers(dir string) error {
	info, err := os.Stat(dir) // an operator may have put a link here
	if err != nil {
		return errors.WithStack(err)
	}
	if err := denyWrite(dir, info); err != nil {
		return err
	}
	entries, err := readDir(dir)
	if err != nil {
		return err
	}
	// From here on no one else can put a link in the place of an entry. Where one cannot be closed the daemon starts all
	// the same: the creates that would use it fail, see makeParent.
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			_ = denyWrite(filepath.Join(dir, e.Name()), info)
		}
	}
	return nil
}

// Open returns the bundle that exists for this id. Errors: InvalidArgument; NotFound; FailedPrecondition when what
// stands in its place is not a directory.
func (l Layout) Open(ns, id string) (*Bundle, error) {
	b, err := l.bundle(ns, id)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{filepath.Dir(b.Path), b.Path} {
		err := requireDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Wrapf(errdefs.ErrNotFound, "bundle %s", b.Path)
		}
		if err != nil {
			return nil, errors.Wrapf(err, "cannot open bundle %s", b.Path)
		}
	}
	return b, nil
}

// ValidateID checks a namespace and the id of an instance in it against containerd's rules. What passes is safe as a
// path element and is never hidden. Errors: InvalidArgument.
func ValidateID(ns, id string) error {
	if err := identifiers.Validate(ns); err != nil {
		return errors.Wrap(err, "invalid namespace")
	}
	if err := identifiers.Validate(id); err != nil {
		return errors.Wrapf(err, "invalid id in namespace %s", ns)
	}
	return nil
}

func (l Layout) check() error {
	if !filepath.IsAbs(l.State) || !filepath.IsAbs(l.Root) {
		return errors.Wrapf(errdefs.ErrInvalidArgument, "state directory %q and root directory %q must be absolute",
			l.State, l.Root)
	}
	if filepath.Clean(l.State) == filepath.Clean(l.Root) {
		return errors.Wrapf(errdefs.ErrInvalidArgument, "state and root directory are the same, %q", l.State)
	}
	return nil
}

// bundle returns the handle for an id, without looking at the disk.
func (l Layout) bundle(ns, id string) (*Bundle, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	if err := ValidateID(ns, id); err != nil {
		return nil, err
	}
	path, work := filepath.Join(l.State, ns, id), filepath.Join(l.Root, ns, id)
	return &Bundle{
		Namespace: ns,
		ID:        id,
		Path:      path,
		dir:       parting{path: path},
		work:      parting{path: work},
	}, nil
}

// denyWrite takes the write permission of others than the owner from a directory.
func denyWrite(path string, info fs.FileInfo) error {
	const others fs.FileMode = 0o022
	mode := info.Mode()
	if runtime.GOOS == "windows" || !mode.IsDir() || mode&others == 0 {
		return nil
	}
	return errors.WithStack(os.Chmod(path, mode&^others))
}

// requireDir fails unless path is a directory itself, not a link to one.
func requireDir(path string) error {
	_, err := lstatDir(path)
	return err
}

// lstatDir is requireDir, and what it has seen.
func lstatDir(path string) (fs.FileInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	if !info.IsDir() {
		return nil, errors.Wrapf(errdefs.ErrFailedPrecondition, "%s is not a directory (%s)", path, info.Mode().Type())
	}
	return info, nil
}
