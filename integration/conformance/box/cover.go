// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package box

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// Cover binds a file with the given text over path, for programs in the box alone. It is for sysctls that belong to
// the machine. A user namespace in the box cannot mount proc after that.
func Cover(path, text string) error {
	file := filepath.Join(Dir, "cover", strings.ReplaceAll(strings.Trim(path, "/"), "/", "_"))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return errors.Wrap(err, "cannot make a file to bind")
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return errors.Wrap(err, "cannot make a file to bind")
	}
	return mount(file, path, "", unix.MS_BIND, "")
}
