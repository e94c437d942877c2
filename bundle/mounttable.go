// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"io/fs"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"github.com/pkg/errors"
)

// mountInTable is mountInside by the system's mount table.
func mountInTable(path, except string) (string, error) {
	// The table has no links in its paths; path itself must not be resolved if it is one.
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", errors.WithStack(err)
	}
	resolved := filepath.Join(dir, filepath.Base(path))
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(resolved))
	if err != nil {
		return "", errors.WithStack(err)
	}
	for _, m := range mounts {
		rel, err := filepath.Rel(resolved, m.Mountpoint)
		if err != nil {
			return "", errors.WithStack(err)
		}
		mounted := filepath.Join(path, rel)
		if except == "" || !isAtOrBelow(mounted, except) {
			return mounted, nil
		}
	}
	return "", nil
}

func isAtOrBelow(path, top string) bool {
	rel, err := filepath.Rel(top, path)
	return err == nil && filepath.IsLocal(rel)
}
