// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	stderrors "errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// Remove unmounts what is at or below rootfs, removes rootfs by rmdir, takes the bundle out of its place by a rename
// and removes the rest; then, likewise, the work directory. Mounts are made private before anything is unmounted, so
// that nothing of the host's is unmounted with them, and one that a process still uses stays. The caller has made sure
// that nothing of the instance uses the bundle any more.
//
// It may be called again after an error, and after success, when it does nothing. A bundle or work directory that is
// gone already is no error.
//
// Errors: ErrNotEmpty when rootfs holds something (the bundle stays, whole); ErrInUse when a process uses what is
// mounted there (likewise); ErrMounted when something is mounted elsewhere in the bundle or in the work directory,
// which is named (nothing was done then); FailedPrecondition when a link or a file stands in the place of the bundle or
// of the namespace. When another error comes after the bundle has left its place, the id can be used again
// nevertheless, and what is left is removed by the next Remove of this handle, or by Sweep.
func (b *Bundle) Remove() error {
	if b.dir.path == "" || b.dir.path != b.Path {
		return errors.Wrapf(errdefs.ErrInvalidArgument, "cannot remove bundle %q: it does not come from a layout",
			b.Path)
	}
	b.removing.Lock()
	defer b.removing.Unlock()

	if err := b.leave(); err != nil {
		return errors.Wrapf(err, "cannot remove bundle %s", b.Path)
	}
	// One error must not keep the other directory from being removed.
	err := errors.Wrapf(b.dir.clear(), "cannot remove what was bundle %s", b.Path)
	werr := errors.Wrapf(b.work.run(), "cannot remove work directory %s", b.work.path)
	return stderrors.Join(err, werr)
}

// Isolate makes private what is mounted at or below rootfs, so that a program that unmounts it, as `shim delete` does,
// unmounts nothing of the host's with it: what is mounted in a volume that the host shares. A bundle that is gone is no
// error.
func (b *Bundle) Isolate() error {
	return errors.Wrapf(isolate(b.Rootfs()), "cannot keep the mounts of bundle %s to itself", b.Path)
}

// leave takes the bundle out of its place.
func (b *Bundle) leave() error {
	if b.dir.moved {
		return nil
	}
	return b.part(b.dir.moveAway)
}

// part removes rootfs and then moves the bundle out of its place; until that last step everything but rootfs is as it
// was.
func (b *Bundle) part(move func() error) error {
	if err := b.checkPlaces(); err != nil {
		return err
	}
	if err := refuseMounts(b.Path, b.Rootfs()); err != nil {
		return err
	}
	if err := refuseMounts(b.work.path, ""); err != nil {
		return err
	}
	if err := removeRootfs(b.Rootfs()); err != nil {
		return err
	}
	return move()
}

// checkPlaces fails when the paths of the bundle do not lead to where they seem to.
func (b *Bundle) checkPlaces() error {
	for _, dir := range []string{filepath.Dir(b.Path), b.Path, filepath.Dir(b.work.path)} {
		if err := requireDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removeRootfs unmounts and removes a rootfs, never what is in it. A link in its place holds no data and goes with
// the bundle.
func removeRootfs(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errors.WithStack(err)
	}
	if info.Mode().Type() == fs.ModeSymlink {
		return nil
	}
	if !info.IsDir() {
		return errors.Wrapf(errdefs.ErrFailedPrecondition, "%s is not a directory (%s); move it away", path,
			info.Mode().Type())
	}
	err = unmountAndRmdir(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, ErrInUse) {
		return err
	}
	if first := firstName(path); first != "" {
		return errors.Wrapf(ErrNotEmpty, "%s holds %q, which is not ours to remove; move it away", path, first)
	}
	return err
}

// firstName returns the name of something in a directory; "" when there is nothing, or when that cannot be told.
func firstName(path string) string {
	dir, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer dir.Close()
	names, err := dir.Readdirnames(1)
	if err != nil || len(names) == 0 {
		return ""
	}
	return names[0]
}

// refuseMounts fails, naming it, when something is mounted at or below path. except is not looked into.
func refuseMounts(path, except string) error {
	mounted, err := mountInside(path, except)
	if err != nil {
		return errors.Wrapf(err, "cannot tell what is mounted inside %s", path)
	}
	if mounted != "" {
		return errors.Wrapf(ErrMounted, "%s is a mount point; unmount it", mounted)
	}
	return nil
}

// parting is a directory on its way out: moved to a hidden name of its own, then cleared. Each step is done once.
type parting struct {
	path   string
	hidden string // "": there is nothing to clear
	moved  bool
}

func (p *parting) run() error {
	if err := p.moveAway(); err != nil {
		return err
	}
	return p.clear()
}

// moveAway frees the name, in one step, so that it never denotes a part of what was there. A link or a file in the
// directory's place is removed at once: under a hidden name it would stay after a crash, since Sweep touches
// directories only.
func (p *parting) moveAway() error {
	if p.moved {
		return nil
	}
	info, err := os.Lstat(p.path)
	switch {
	case err == nil && info.IsDir():
		dir, name := filepath.Split(p.path)
		hidden := filepath.Join(dir, newLeftoverName(name))
		if err = os.Rename(p.path, hidden); err == nil {
			p.hidden = hidden
		}
	case err == nil:
		err = os.Remove(p.path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.WithStack(err)
	}
	p.moved = true
	return nil
}

func (p *parting) clear() error {
	if p.hidden == "" {
		return nil
	}
	if err := removeTree(p.hidden); err != nil {
		return err
	}
	p.hidden = ""
	return nil
}
