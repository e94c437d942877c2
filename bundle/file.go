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

// readFile reads one file of a bundle. It opens regular files only: a fifo in its place would hang its reader, at boot
// the daemon. Errors: NotFound; ErrForeign when it is not a regular file, or too long.
func readFile(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, readError(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.Wrapf(ErrForeign, "%s is not a regular file (%s)", path, info.Mode().Type())
	}
	f, err := os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, readError(path, err)
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
