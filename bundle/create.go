// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

const (
	bundlePerm   fs.FileMode = 0o700
	remappedPerm fs.FileMode = 0o710
	rootfsPerm   fs.FileMode = 0o711
	workPerm     fs.FileMode = 0o711
	parentPerm   fs.FileMode = 0o711
	configPerm   fs.FileMode = 0o644
)

// CreateOptions are what a new bundle needs to know of its container.
type CreateOptions struct {
	// Spec goes into config.json as it is. nil: no config.json (some sandboxes have no spec).
	Spec []byte
	// GID is the host's group for the container's root group under a user namespace; it gets search permission on the
	// bundle. 0: none. Without meaning on Windows.
	GID uint32
}

// Create makes the bundle and the work directory of a new instance. A work directory that an earlier instance left is
// replaced. On failure nothing of it is left behind.
//
// Errors: InvalidArgument; AlreadyExists when there is something in the bundle's place, whatever it is;
// FailedPrecondition when a link or a file stands in the namespace's place, or when something is mounted in the old
// work directory (ErrMounted).
func (l Layout) Create(ns, id string, o CreateOptions) (*Bundle, error) {
	b, err := l.bundle(ns, id)
	if err != nil {
		return nil, err
	}
	var undo undoStack
	if err := b.create(o, &undo); err != nil {
		if uerr := undo.run(); uerr != nil {
			return nil, errors.Wrapf(err, "cannot create bundle %s (nor undo it: %v)", b.Path, uerr)
		}
		return nil, errors.Wrapf(err, "cannot create bundle %s", b.Path)
	}
	return b, nil
}

func (b *Bundle) create(o CreateOptions, undo *undoStack) error {
	if err := makeParent(b.Path); err != nil {
		return err
	}
	if err := os.Mkdir(b.Path, bundlePerm); errors.Is(err, fs.ErrExist) {
		return errors.Wrap(errdefs.ErrAlreadyExists, "its directory is there already")
	} else if err != nil {
		return errors.WithStack(err)
	}
	undo.push((&parting{path: b.Path}).run)
	if err := setBundleMode(b.Path, o.GID); err != nil {
		return err
	}
	if err := makeDir(b.Rootfs(), rootfsPerm); err != nil {
		return err
	}
	if err := b.createWork(b.Path, undo); err != nil {
		return err
	}
	if o.Spec == nil {
		return nil
	}
	return errors.WithStack(overwriteFile(b.file(configFile), o.Spec, configPerm))
}

// Replace makes the bundle's directory again, empty, where it is gone: `shim delete` runs in it. It reports whether it
// did; a directory that is there is left as it is. Remove takes what it made away. Errors: FailedPrecondition when a
// link or a file stands in the place of the bundle or of its namespace, or when this handle has removed the bundle
// already.
func (b *Bundle) Replace() (made bool, err error) {
	b.removing.Lock()
	defer b.removing.Unlock()
	if b.dir.path == "" || b.dir.path != b.Path {
		return false, errors.Wrapf(errdefs.ErrInvalidArgument,
			"cannot replace bundle %q: it does not come from a layout", b.Path)
	}
	if b.dir.moved {
		return false, errors.Wrapf(errdefs.ErrFailedPrecondition, "cannot replace bundle %s: it is removed", b.Path)
	}
	if err := makeParent(b.Path); err != nil {
		return false, errors.Wrapf(err, "cannot replace bundle %s", b.Path)
	}
	err = os.Mkdir(b.Path, bundlePerm)
	if errors.Is(err, fs.ErrExist) {
		err = requireDir(b.Path)
	} else {
		made = err == nil
	}
	return made, errors.Wrapf(err, "cannot replace bundle %s", b.Path)
}

// createWork makes the work directory, and the link to it in dir.
func (b *Bundle) createWork(dir string, undo *undoStack) error {
	path := b.work.path
	if err := makeParent(path); err != nil {
		return err
	}
	err := makeDir(path, workPerm)
	if errors.Is(err, fs.ErrExist) {
		if err := discardWork(path); err != nil {
			return errors.Wrapf(err, "cannot replace the work directory %s of an earlier instance", path)
		}
		err = makeDir(path, workPerm)
	}
	if err != nil {
		return err
	}
	undo.push((&parting{path: path}).run)
	return errors.WithStack(os.Symlink(path, filepath.Join(dir, workLink)))
}

// discardWork clears the place of a new work directory.
func discardWork(path string) error {
	if err := refuseMounts(path, ""); err != nil {
		return err
	}
	old := parting{path: path}
	if err := old.moveAway(); err != nil {
		return err
	}
	// Out of the way is enough here: what cannot be removed now is left to the sweep at boot, and does not keep the id
	// from being used.
	_ = old.clear()
	return nil
}

// makeParent makes the directory of a namespace, and those above, and refuses a link in its place: List would not find
// what is behind it. One that is there already is closed to others, as Init does it.
func makeParent(path string) error {
	dir := filepath.Dir(path)
	if err := makeParents(dir, parentPerm); err != nil {
		return err
	}
	info, err := lstatDir(dir)
	if err != nil {
		return err
	}
	return denyWrite(dir, info)
}

// makeParents makes a directory of exactly this mode, whatever the umask, and those above it, where they are missing.
func makeParents(dir string, perm fs.FileMode) error {
	err := makeDir(dir, perm)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(dir), perm); err != nil {
			return errors.WithStack(err)
		}
		err = makeDir(dir, perm)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// makeDir makes a directory of exactly this mode, whatever the umask.
func makeDir(path string, perm fs.FileMode) error {
	if err := os.Mkdir(path, perm); err != nil {
		return errors.WithStack(err)
	}
	if err := os.Chmod(path, perm); err != nil {
		_ = os.Remove(path)
		return errors.WithStack(err)
	}
	return nil
}

// undoStack holds what takes back what was acquired, last first.
type undoStack []func() error

func (u *undoStack) push(f func() error) {
	*u = append(*u, f)
}

// run takes everything back and returns the first error; it does not stop at one.
func (u *undoStack) run() error {
	var first error
	for i := len(*u) - 1; i >= 0; i-- {
		if err := (*u)[i](); err != nil && first == nil {
			first = err
		}
	}
	return first
}
