// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/pkg/errors"
)

const (
	// warmPrefix starts the id of a warm shim. No container's id begins so: a container with the id that a shim was
	// started under would join it unnoticed by the daemon.
	warmPrefix = "_"
	// warmSpec is all that a shim without a container reads of its spec.
	warmSpec = "{}"
)

// WarmRecordVersion is the version of WarmRecord that this code writes and the newest that it reads.
const WarmRecordVersion = 1

// WarmRecord is what we know of a shim that was started for no container in particular. Only we read it.
type WarmRecord struct {
	// Version and ID, that of the warm shim, are set by WriteRecord.
	Version int    `json:"version"`
	ID      string `json:"id,omitempty"`
	// Namespace, Runtime and Key say whom it can serve: Key is the digest of all that a container must have in common
	// with it.
	Namespace string `json:"namespace"`
	Runtime   string `json:"runtime,omitempty"`
	Key       string `json:"key"`
	// BootID is the machine's boot in which the processes below have a meaning.
	BootID string `json:"boot_id,omitempty"`
	// Launch is there from before the exec of the shim binary.
	Launch Launch `json:"launch"`
	// Shim is the process, once verified.
	Shim *Proc `json:"shim,omitempty"`
	// Files are the names in the directory when the shim had started: all else is the task's that it serves.
	Files []string `json:"files,omitempty"`
}

// Warm is a handle on the directory of one warm shim, which is the process's working directory. It waits at Path, and
// becomes the bundle of the task that the shim serves: Assemble and Lend, Bundle.Return and Empty. Safe for concurrent
// use; the records, and the steps from one place to the other, want one caller at a time.
type Warm struct {
	// ID is what the shim is started under: fresh, random, and no id that an instance can have.
	ID string
	// Path is where the directory waits, absolute. containerd's own runtime takes it for a hidden namespace and passes
	// it over.
	Path string

	layout Layout

	mu    sync.Mutex // guards what follows
	place string     // where the directory is: Path, or the path of the bundle that it has become
	start []string   // the Files of the record
}

func (l Layout) warm(id string) *Warm {
	path := filepath.Join(l.State, "."+id)
	return &Warm{ID: id, Path: path, layout: l, place: path}
}

// files is the directory where it is now, for the files that it has in common with a bundle.
func (w *Warm) files() *Bundle {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &Bundle{ID: w.ID, Path: w.place}
}

func (w *Warm) moveTo(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.place = path
}

func (w *Warm) recorded(r *WarmRecord) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start = r.Files
}

// startFiles are the names that stay in the directory when it is emptied. The configuration is no task's, but is
// written anew.
func (w *Warm) startFiles() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	keep := slices.Concat(ownFiles, w.start)
	return slices.DeleteFunc(keep, func(name string) bool { return name == configFile || name == rootfsDir })
}

// CreateWarm makes the directory of a new warm shim. On failure nothing of it is left behind.
func (l Layout) CreateWarm() (*Warm, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	w := l.warm(warmPrefix + strings.ToLower(rand.Text()))
	if err := os.Mkdir(w.Path, bundlePerm); err != nil {
		return nil, errors.Wrap(err, "cannot create the directory of a warm shim")
	}
	if err := overwriteFile(w.files().file(configFile), []byte(warmSpec), configPerm); err != nil {
		_ = removeTree(w.Path)
		return nil, errors.Wrap(err, "cannot create the directory of a warm shim")
	}
	return w, nil
}

// ListWarm returns the directories of warm shims. A state directory that does not exist holds none.
func (l Layout) ListWarm() ([]*Warm, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	entries, err := readDir(l.State)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot list warm shims in %s", l.State)
	}
	var found []*Warm
	for _, e := range entries {
		if id, hidden := strings.CutPrefix(e.Name(), "."); hidden && strings.HasPrefix(id, warmPrefix) && e.IsDir() {
			found = append(found, l.warm(id))
		}
	}
	return found, nil
}

// LogPath is where the shim writes its log: a fifo.
func (w *Warm) LogPath() string { return w.files().LogPath() }

// WriteBootstrap records how to reach the shim. Errors: those of Bundle.WriteBootstrap.
func (w *Warm) WriteBootstrap(r *bootapi.BootstrapResult) error { return w.files().WriteBootstrap(r) }

// ReadBootstrap returns how to reach the shim. Errors: those of Bundle.ReadBootstrap; an address that the shim has left
// there by itself is none of a launch that was answered, so that is NotFound too.
func (w *Warm) ReadBootstrap() (*bootapi.BootstrapResult, error) {
	path := w.files().file(bootstrapFile)
	if _, err := os.Lstat(path); err != nil {
		return nil, readError(path, err)
	}
	return w.files().ReadBootstrap()
}

// WriteRecord replaces the record, with the Version that this code writes. r itself is not changed.
func (w *Warm) WriteRecord(r *WarmRecord) error {
	stamped := *r
	stamped.Version, stamped.ID = WarmRecordVersion, w.ID
	data, err := json.Marshal(&stamped)
	if err != nil {
		return errors.Wrapf(err, "cannot write the record of warm shim %s", w.ID)
	}
	if err := writeFile(w.files().file(warmFile), data, 0o600); err != nil {
		return err
	}
	w.recorded(r)
	return nil
}

// ReadRecord returns the record. Errors: NotFound when there is none: nothing was started yet, or nothing is left but
// the directory; ErrForeign when it is damaged or from a version of this code that is too new.
func (w *Warm) ReadRecord() (*WarmRecord, error) {
	path := w.files().file(warmFile)
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	r, err := parseWarmRecord(data)
	if err != nil {
		return nil, errors.Wrapf(ErrForeign, "cannot use %s: %v", path, err)
	}
	w.recorded(r)
	return r, nil
}

func parseWarmRecord(data []byte) (*WarmRecord, error) {
	r := &WarmRecord{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, errors.Wrap(err, "damaged")
	}
	switch {
	case r.Version < 1 || r.Version > WarmRecordVersion:
		return nil, errors.Errorf("version %d, want 1 to %d", r.Version, WarmRecordVersion)
	case r.Namespace == "":
		return nil, errors.New("damaged: no namespace")
	case r.Shim != nil && r.Shim.Pid <= 0:
		return nil, errors.Errorf("damaged: shim pid %d", r.Shim.Pid)
	}
	return r, nil
}

// Remove removes the directory, where it waits; one that is a bundle now goes with that. The caller has made sure that
// the shim is gone. One that is gone already is no error. A removal that is cut short leaves a directory without a
// record. Errors: those of Bundle.Remove.
func (w *Warm) Remove() error {
	if _, err := os.Lstat(w.Path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Wrapf(w.remove(), "cannot remove the directory of warm shim %s", w.ID)
}

func (w *Warm) remove() error {
	files := &Bundle{Path: w.Path}
	if err := refuseMounts(w.Path, files.Rootfs()); err != nil {
		return err
	}
	if err := removeRootfs(files.Rootfs()); err != nil {
		return err
	}
	// The record first: without it a daemon that finds the rest after a crash knows that no shim is behind it.
	if err := os.Remove(files.file(warmFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.WithStack(err)
	}
	return removeTree(w.Path)
}
