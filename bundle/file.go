// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"io"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// maxFile is the size, in bytes, above which no file in a bundle is read. Ours stay far below it.
const maxFile = 4 << 20

// OpenRegular opens a file for reading if it is a regular one: no link is followed with the last name of the path, and a
// fifo, which would hang its reader, is not waited for. Errors: NotFound; ErrNotRegular.
func OpenRegular(path string) (*os.File, error) {
	info, err := os.Lstat(path) // before it is opened, which of a device may do something
	if err != nil {
		return nil, readError(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.Wrapf(ErrNotRegular, "%s (%s)", path, info.Mode().Type())
	}
	f, err := os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, readError(path, err)
	}
	opened, err := f.Stat()
	if err == nil && !opened.Mode().IsRegular() {
		err = errors.Wrapf(ErrNotRegular, "since a moment ago (%s)", opened.Mode().Type())
	}
	if err != nil {
		_ = f.Close()
		return nil, readError(path, err)
	}
	return f, nil
}

// readFile reads one file of a bundle. A fifo in its place would hang the daemon at its boot. Errors: NotFound;
// ErrForeign when it is not a regular file, or too long.
func readFile(path string) ([]byte, error) {
	f, err := OpenRegular(path)
	if errors.Is(err, ErrNotRegular) {
		return nil, errors.Wrapf(ErrForeign, "%v", err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, readError(path, err)
	}
	if len(data) > maxFile {
		return nil, errors.Wrapf(ErrForeign, "%s is longer than %d bytes", path, maxFile)
	}
	return data, nil
}

func readError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Wrapf(errdefs.ErrNotFound, "%s", path)
	}
	return errors.Wrapf(err, "cannot read %s", path)
}

// writeFile replaces one file of a bundle, as a whole. It does not sync: a crash of the daemon loses nothing that was
// written, and a crash of the machine takes the processes along that the records are about. Errors: NotFound when the
// bundle is gone.
func writeFile(path string, data []byte, perm fs.FileMode) error {
	err := replaceFile(path, data, perm)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Wrapf(errdefs.ErrNotFound, "cannot write %s: its bundle is gone", path)
	}
	return errors.Wrapf(err, "cannot write %s", path)
}
