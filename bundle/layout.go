// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"io/fs"
	"os"
	"path/filepath"

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

// Init makes both directories, with perm, where they are missing. A directory that exists keeps its mode, unless perm
// is 0700: a private directory is made private again (containerd does so for sandboxes, not for tasks).
func (l Layout) Init(perm os.FileMode) error {
	if err := l.check(); err != nil {
		return err
	}
	for _, dir := range []string{l.Root, l.State} {
		if err := os.MkdirAll(dir, perm); err != nil {
			return errors.Wrapf(err, "cannot make directory %s", dir)
		}
		if perm != privatePerm {
			continue
		}
		if err := os.Chmod(dir, perm); err != nil {
			return errors.Wrapf(err, "cannot make directory %s private", dir)
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

// requireDir fails unless path is a directory itself, not a link to one.
func requireDir(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return errors.WithStack(err)
	}
	if !info.IsDir() {
		return errors.Wrapf(errdefs.ErrFailedPrecondition, "%s is not a directory (%s)", path, info.Mode().Type())
	}
	return nil
}
