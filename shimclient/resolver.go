// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// FileID is the identity of a file's content: it changes when the file is
// replaced or written to. Comparable. The zero value is no file's.
type FileID struct {
	dev, inode   uint64
	size         int64
	mtime, ctime int64 // nanoseconds since 1970
}

// IdentifyFile returns the identity of the file at path, following links. The
// error is that of stat.
func IdentifyFile(path string) (FileID, error) { return identifyFile(path) }

// Binary is a shim binary that Resolve found.
type Binary struct {
	// Runtime is the name or path that was resolved.
	Runtime string
	// Path is absolute.
	Path string
	// File is what was at Path then.
	File FileID
}

// Resolver finds the shim binary of a runtime. Safe for concurrent use.
type Resolver struct {
	configured map[string]string
	self       string // directory of the daemon's binary, "" if unknown

	mu    sync.Mutex // guards cache; not held while files are looked at
	cache map[string]Binary
}

// NewResolver makes a Resolver. paths gives the binary for a runtime name (or
// for an absolute path that clients use as one) where the config names it; such
// a binary is the only one used for that runtime.
func NewResolver(paths map[string]string) *Resolver {
	r := &Resolver{configured: make(map[string]string, len(paths)), cache: make(map[string]Binary)}
	for name, path := range paths {
		if path != "" {
			r.configured[name] = path
		}
	}
	if self, err := os.Executable(); err == nil {
		r.self = filepath.Dir(self)
	}
	return r
}

// Resolve returns the binary of a runtime: of an absolute path that path itself;
// of a name such as io.containerd.runc.v2 the configured one, else
// containerd-shim-runc-v2 from PATH, else the one beside the daemon's binary.
// The working directory never counts, nor do relative entries of PATH.
//
// An answer is remembered and checked against the file at each use. Errors are
// of class InvalidArgument (no such name can exist) or NotFound (naming the
// binary looked for, and where).
func (r *Resolver) Resolve(runtime string) (Binary, error) {
	if cached, ok := r.cached(runtime); ok {
		return cached, nil
	}
	path, err := r.find(runtime)
	if err != nil {
		return Binary{}, err
	}
	id, err := IdentifyFile(path)
	if err != nil {
		return Binary{}, errors.Wrapf(errdefs.ErrNotFound, "cannot resolve runtime %q: %v", runtime, err)
	}
	found := Binary{Runtime: runtime, Path: path, File: id}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cache[runtime] = found
	return found, nil
}

// ResolveNamesake returns the binary of the same file name as path that PATH has, else the one beside the daemon's
// binary. It stands in for a binary that is gone from path, to clean up after a shim. Errors: InvalidArgument;
// NotFound, naming the file looked for, and where.
func (r *Resolver) ResolveNamesake(path string) (Binary, error) {
	if !filepath.IsAbs(path) {
		return Binary{}, errors.Wrapf(errdefs.ErrInvalidArgument,
			"cannot look for a namesake of %q, which is no absolute path", path)
	}
	found, err := r.search(path, filepath.Base(path))
	if err != nil {
		return Binary{}, err
	}
	id, err := IdentifyFile(found)
	if err != nil {
		return Binary{}, errors.Wrapf(errdefs.ErrNotFound, "cannot use %s in place of %s: %v", found, path, err)
	}
	return Binary{Runtime: path, Path: found, File: id}, nil
}

func (r *Resolver) cached(runtime string) (Binary, bool) {
	r.mu.Lock()
	cached, ok := r.cache[runtime]
	r.mu.Unlock()
	if !ok {
		return Binary{}, false
	}
	id, err := IdentifyFile(cached.Path)
	return cached, err == nil && id == cached.File
}

func (r *Resolver) find(runtime string) (string, error) {
	if runtime == "" {
		return "", errors.Wrap(errdefs.ErrInvalidArgument, "cannot resolve runtime: no runtime name given")
	}
	if path, ok := r.configured[runtime]; ok {
		return explicitBinary(runtime, path, "the path configured for it")
	}
	if filepath.IsAbs(runtime) {
		return explicitBinary(runtime, filepath.Clean(runtime), "the path given as its name")
	}
	name, err := shimBinaryName(runtime)
	if err != nil {
		return "", err
	}
	return r.search(runtime, name)
}

// explicitBinary checks a path that was given.
func explicitBinary(runtime, path, source string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", errors.Wrapf(errdefs.ErrInvalidArgument,
			"cannot resolve runtime %q: %s, %q, must be absolute", runtime, source, path)
	}
	if err := checkExecutable(path); err != nil {
		return "", errors.Wrapf(errdefs.ErrNotFound,
			"cannot resolve runtime %q: %s is no usable shim binary: %v", runtime, source, err)
	}
	return path, nil
}

// shimBinaryName turns …NAME.VERSION into containerd-shim-NAME-VERSION.
func shimBinaryName(runtime string) (string, error) {
	parts := strings.Split(runtime, ".")
	n := len(parts)
	if n < 2 || parts[0] == "" || parts[n-1] == "" || parts[n-2] == "" || strings.ContainsAny(runtime, "/\\\x00") {
		return "", errors.Wrapf(errdefs.ErrInvalidArgument,
			"cannot resolve runtime %q: it must be a name like io.containerd.runc.v2, or the absolute path of a shim binary", runtime)
	}
	return "containerd-shim-" + parts[n-2] + "-" + parts[n-1] + exeSuffix(), nil
}

func (r *Resolver) search(runtime, name string) (string, error) {
	var dirs []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) {
			dirs = append(dirs, dir)
		}
	}
	where := "in PATH"
	if r.self != "" {
		dirs = append(dirs, r.self)
		where += " nor in " + r.self
	}
	unusable := ""
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		err := checkExecutable(path)
		if err == nil {
			return path, nil
		}
		var missing *fs.PathError
		if unusable == "" && (!errors.As(err, &missing) || errors.Is(err, fs.ErrPermission)) {
			unusable = "; passed over: " + err.Error()
		}
	}
	return "", errors.Wrapf(errdefs.ErrNotFound,
		"cannot resolve runtime %q: shim binary %s is not installed (neither %s%s)", runtime, name, where, unusable)
}

func checkExecutable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.Errorf("%s is not a regular file", path)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o111 == 0:
		return errors.Errorf("%s is not executable", path)
	}
	return nil
}

func exeSuffix() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}
