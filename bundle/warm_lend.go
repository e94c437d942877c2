// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// A process's working directory is an inode, whatever it is called: the directory of a warm shim, assembled as a bundle
// and renamed to the bundle's place, is the bundle in which the shim and all that it runs work, as if the shim had been
// started in it.

// ownFiles are what a shim makes at its start, and needs for as long as it runs, and our records of it. config.json is
// not among them: it is another for each task.
var ownFiles = []string{logFile, socketDirLink, addressFile, shimPidFile, bootstrapFile, warmFile}

// AssembleOptions are what a bundle is made of that is there as a whole from its first moment.
type AssembleOptions struct {
	CreateOptions
	// Binary is the path of the shim binary, Record our record.
	Binary string
	Record *Record
}

// Assemble makes the directory, which waits and is empty, a bundle in all but its place, and makes the work directory,
// in which it replaces what an earlier instance left. The handle that it returns is for Lend; until then there is
// nothing in its place. On failure the directory waits as before, or no daemon that finds it uses it: Empty says so.
//
// Errors: InvalidArgument; FailedPrecondition when a link or a file stands in the namespace's place, or when something
// is mounted in the old work directory (ErrMounted).
func (w *Warm) Assemble(ns, id string, o AssembleOptions) (*Bundle, error) {
	b, err := w.layout.bundle(ns, id)
	if err != nil {
		return nil, err
	}
	var undo undoStack
	if err := w.assemble(b, o, &undo); err != nil {
		if uerr := undo.run(); uerr != nil {
			return nil, errors.Wrapf(err, "cannot assemble bundle %s in %s (nor undo it: %v)", b.Path, w.Path, uerr)
		}
		return nil, errors.Wrapf(err, "cannot assemble bundle %s in %s", b.Path, w.Path)
	}
	return b, nil
}

func (w *Warm) assemble(b *Bundle, o AssembleOptions, undo *undoStack) error {
	if err := checkPath(o.Binary); err != nil {
		return errors.Wrapf(errdefs.ErrInvalidArgument, "cannot record the shim binary: %v", err)
	}
	record, err := o.Record.marshal()
	if err != nil {
		return err
	}
	if err := makeParent(b.Path); err != nil {
		return err
	}
	undo.push(w.Empty)
	if err := setBundleMode(w.Path, o.GID); err != nil {
		return err
	}
	dir := &Bundle{Path: w.Path}
	if err := makeDir(dir.Rootfs(), rootfsPerm); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
		perm fs.FileMode
	}{{configFile, o.Spec, configPerm}, {shimBinaryFile, []byte(o.Binary), 0o600}, {recordFile, record, 0o600}} {
		// The file is not read before the directory is lent, so that it need not be replaced in one step.
		if err := overwriteFile(dir.file(f.name), f.data, f.perm); err != nil {
			return errors.WithStack(err)
		}
	}
	return b.createWork(w.Path, undo)
}

// Lend puts the assembled directory in the place of the bundle that it was assembled for, in one step: the bundle
// appears as a whole. On failure what Assemble has made is undone; b is none then. Errors: AlreadyExists when there is
// something in that place, whatever it is.
func (w *Warm) Lend(b *Bundle) error {
	err := renameNoReplace(w.Path, b.Path)
	if err == nil {
		w.moveTo(b.Path)
		return nil
	}
	if errors.Is(err, fs.ErrExist) {
		err = errors.Wrap(errdefs.ErrAlreadyExists, "there is something in its place")
	}
	undo := undoStack{w.Empty, b.work.run}
	if uerr := undo.run(); uerr != nil {
		return errors.Wrapf(err, "cannot make the directory of warm shim %s bundle %s (nor undo it: %v)", w.ID, b.Path,
			uerr)
	}
	return errors.Wrapf(err, "cannot make the directory of warm shim %s bundle %s", w.ID, b.Path)
}

// LentID returns the id of the warm shim whose directory has become the bundle, as its record tells. Errors: NotFound
// when it is none's; ErrForeign when the record is damaged, or of a version that does not tell.
func (b *Bundle) LentID() (string, error) {
	path := b.file(warmFile)
	data, err := readFile(path)
	if err != nil {
		return "", err
	}
	r, err := parseWarmRecord(data)
	if err == nil && r.ID == "" {
		err = errors.New("no id")
	}
	if err != nil {
		return "", errors.Wrapf(ErrForeign, "cannot use %s: %v", path, err)
	}
	return r.ID, nil
}

// Lent returns the handle on the directory that has become the bundle, of the warm shim with this id. Errors: NotFound
// when the bundle is not the directory of a warm shim (that may serve it all the same); InvalidArgument when id is none
// of a warm shim.
func (l Layout) Lent(b *Bundle, id string) (*Warm, error) {
	if !strings.HasPrefix(id, warmPrefix) || strings.ContainsAny(id, `/\`) {
		return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "%q is not the id of a warm shim", shorten(id))
	}
	if _, err := os.Lstat(b.file(warmFile)); err != nil {
		return nil, readError(b.file(warmFile), err)
	}
	w := l.warm(id)
	w.moveTo(b.Path)
	return w, nil
}

// Return takes the bundle, which is the directory of w, out of its place by a rename to the place where that waits.
// Before, it unmounts what is at or below rootfs and removes rootfs by rmdir, as Remove does, and with Remove's errors.
// What is left for Remove is the work directory, for Empty all other files of the bundle. It may be called again.
// Errors: besides those, NotFound when the bundle is gone: then the shim works in a directory that no path leads to.
func (b *Bundle) Return(w *Warm) error {
	b.removing.Lock()
	defer b.removing.Unlock()
	if b.dir.moved {
		return nil
	}
	err := b.part(func() error { return renameNoReplace(b.Path, w.Path) })
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Wrapf(errdefs.ErrNotFound, "bundle %s, the directory of warm shim %s", b.Path, w.ID)
	}
	if err != nil {
		return errors.Wrapf(err, "cannot make bundle %s the directory of warm shim %s again", b.Path, w.ID)
	}
	b.dir.moved = true
	w.moveTo(w.Path)
	return nil
}

// Empty makes the directory, where it waits, what it was before it was assembled as a bundle: with config.json for no
// container, and without all else but what the shim makes at its start, our records of it, and the Files of the record
// that was last read or written. The work directory is not touched. Errors: those of Bundle.Remove; the directory is to
// be used no more then, until it has succeeded.
func (w *Warm) Empty() error {
	return errors.Wrapf(w.empty(w.startFiles()), "cannot empty the directory of warm shim %s", w.ID)
}

func (w *Warm) empty(keep []string) error {
	dir := &Bundle{Path: w.Path}
	entries, err := readDir(w.Path)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if slices.Contains(keep, e.Name()) {
			continue
		}
		if e.Name() == rootfsDir {
			if err := removeRootfs(dir.Rootfs()); err != nil {
				return err
			}
		}
		names = append(names, e.Name())
	}
	if err := removeIn(w.Path, names...); err != nil {
		return err
	}
	if err := overwriteFile(dir.file(configFile), []byte(warmSpec), configPerm); err != nil {
		return errors.WithStack(err)
	}
	return resetBundleMode(w.Path)
}

// Names are what is in the directory now.
func (w *Warm) Names() ([]string, error) {
	entries, err := readDir(w.files().Path)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot read the directory of warm shim %s", w.ID)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// LendLog gives the shim's log fifo a second name in the bundle of a task that it serves beside the one whose bundle
// its directory is. There containerd's own runtime looks for it after a rollback and drains it. The name goes with the
// bundle. One that is there already is replaced: it was another shim's.
func (w *Warm) LendLog(to *Bundle) error {
	link := to.file(logFile)
	err := os.Link(w.LogPath(), link)
	if errors.Is(err, os.ErrExist) {
		if err := os.Remove(link); err != nil {
			return errors.WithStack(err)
		}
		err = os.Link(w.LogPath(), link)
	}
	return errors.Wrapf(err, "cannot link the log of warm shim %s into bundle %s", w.ID, to.Path)
}

// marshal stamps the record with the version that this code writes.
func (r *Record) marshal() ([]byte, error) {
	stamped := *r
	stamped.Version = RecordVersion
	data, err := json.Marshal(&stamped)
	return data, errors.WithStack(err)
}
