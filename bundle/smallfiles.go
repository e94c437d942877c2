// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// WriteShimBinary records the path of the shim binary. Errors: InvalidArgument.
func (b *Bundle) WriteShimBinary(path string) error {
	if err := checkPath(path); err != nil {
		return errors.Wrapf(errdefs.ErrInvalidArgument, "cannot record the shim binary of %s: %v", b.Path, err)
	}
	return writeFile(b.file(shimBinaryFile), []byte(path), 0o600)
}

// ShimBinary returns the recorded path of the shim binary. Errors: NotFound when there is none, or an empty one;
// ErrForeign.
func (b *Bundle) ShimBinary() (string, error) {
	path := b.file(shimBinaryFile)
	binary, err := readLine(path)
	if err != nil {
		return "", err
	}
	if err := checkPath(binary); err != nil {
		return "", errors.Wrapf(ErrForeign, "cannot use %s: %v", path, err)
	}
	return binary, nil
}

// WriteSandbox records the sandbox whose shim the task joined. Errors: InvalidArgument.
func (b *Bundle) WriteSandbox(id string) error {
	if err := identifiers.Validate(id); err != nil {
		return errors.Wrapf(err, "cannot record the sandbox of %s", b.Path)
	}
	return writeFile(b.file(sandboxFile), []byte(id), 0o600)
}

// Sandbox returns the recorded sandbox. Errors: NotFound when there is none, or an empty one; ErrForeign.
func (b *Bundle) Sandbox() (string, error) {
	path := b.file(sandboxFile)
	id, err := readLine(path)
	if err != nil {
		return "", err
	}
	if err := identifiers.Validate(id); err != nil {
		return "", errors.Wrapf(ErrForeign, "cannot use %s: %v", path, err)
	}
	return id, nil
}

// Spec returns the container's OCI spec as it was at its create. Errors: NotFound; ErrForeign.
func (b *Bundle) Spec() ([]byte, error) {
	return readFile(b.file(configFile))
}

// InitPid returns the pid of the container's first process, as runc wrote it, and when that was. Whether it is still
// that process is not known. Errors: NotFound; ErrForeign.
func (b *Bundle) InitPid() (pid int, written time.Time, err error) {
	path := b.file(initPidFile)
	if pid, err = readPid(path); err != nil {
		return 0, time.Time{}, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return 0, time.Time{}, readError(path, err)
	}
	return pid, info.ModTime(), nil
}

// RuncOptions returns what a runc shim has written of its options, for its own `delete`. Errors: NotFound; ErrForeign.
func (b *Bundle) RuncOptions() (*options.Options, error) {
	path := b.file(optionsFile)
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	o := &options.Options{}
	if err := json.Unmarshal(data, o); err != nil {
		return nil, errors.Wrapf(ErrForeign, "cannot use %s: %v", path, err)
	}
	return o, nil
}

// NamesRunc reports whether the bundle says to the `delete` of a runc shim that this is the runtime's binary.
func (b *Bundle) NamesRunc(binary string) bool {
	name, err := readLine(b.file(runtimeFile))
	return err == nil && name == binary
}

// ShimExit returns the exit of the container's first process as a runc shim of containerd 2.4 or later wrote it; its
// time is zero where the shim has written none that can be. Errors: NotFound; ErrForeign.
func (b *Bundle) ShimExit() (*Exit, error) {
	path := b.file(exitFile)
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	var e struct {
		Timestamp   time.Time
		Pid, Status int
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, errors.Wrapf(ErrForeign, "cannot use %s: %v", path, err)
	}
	if e.Pid <= 0 || e.Pid > math.MaxInt32 || e.Status < 0 || e.Status > math.MaxInt32 {
		return nil, errors.Wrapf(ErrForeign, "cannot use %s: pid %d, status %d", path, e.Pid, e.Status)
	}
	exit := &Exit{Pid: uint32(e.Pid), Status: uint32(e.Status)}
	// our record could not hold another
	if sec := e.Timestamp.Unix(); sec > 0 && sec < math.MaxInt64/int64(time.Second) {
		exit.At = e.Timestamp.UTC()
	}
	return exit, nil
}

// WriteRuncOptions puts into a bundle that Replace has made, or in place of a damaged file, what `delete` of a runc
// shim reads there: where runc keeps its state, and which runc. Otherwise these files are the shim's alone.
func (b *Bundle) WriteRuncOptions(o *options.Options) error {
	data, err := json.Marshal(o)
	if err != nil {
		return errors.Wrapf(err, "cannot write the options of %s", b.Path)
	}
	if err := writeFile(b.file(optionsFile), data, 0o600); err != nil {
		return err
	}
	if o.BinaryName == "" {
		return nil
	}
	return writeFile(b.file(runtimeFile), []byte(o.BinaryName), 0o600)
}

// ShimPid returns the pid that some shims write down for themselves. Whether it is still that process is not known.
// Errors: NotFound; ErrForeign.
func (b *Bundle) ShimPid() (int, error) {
	return readPid(b.file(shimPidFile))
}

// SocketDir returns the directory in which the shim made its socket: what its link in the bundle says. Errors: NotFound
// (shims before containerd 2.4 have no such link); ErrForeign.
func (b *Bundle) SocketDir() (string, error) {
	path := b.file(socketDirLink)
	info, err := os.Lstat(path)
	if err != nil {
		return "", readError(path, err)
	}
	if info.Mode().Type() != fs.ModeSymlink {
		return "", errors.Wrapf(ErrForeign, "%s is not a link (%s)", path, info.Mode().Type())
	}
	target, err := os.Readlink(path)
	if err != nil {
		return "", readError(path, err)
	}
	if !filepath.IsAbs(target) {
		// The shim made it with the bundle as its working directory.
		target = b.file(target)
	}
	return filepath.Clean(target), nil
}

// readLine reads a file that holds one value; NotFound when that is empty.
func readLine(path string) (string, error) {
	data, err := readFile(path)
	if err != nil {
		return "", err
	}
	line := string(bytes.TrimSpace(data))
	if line == "" {
		return "", errors.Wrapf(errdefs.ErrNotFound, "%s is empty", path)
	}
	return line, nil
}

func readPid(path string) (int, error) {
	line, err := readLine(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(line)
	if err != nil || pid <= 0 || pid > math.MaxInt32 {
		return 0, errors.Wrapf(ErrForeign, "cannot use %s: %q is not a pid", path, shorten(line))
	}
	return pid, nil
}

func checkPath(path string) error {
	switch {
	case path == "" || strings.TrimSpace(path) != path:
		return errors.Errorf("%q is not a path", shorten(path))
	case !utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl):
		return errors.Errorf("%q is not a path", shorten(path))
	}
	return nil
}

// shorten keeps a damaged file from filling the log.
func shorten(s string) string {
	const limit = 64
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}
