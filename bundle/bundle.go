// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"
	"sync"
)

// Bundle is a handle on the directories of one instance. It comes from Layout alone. The exported fields are fixed;
// methods may be called from several goroutines.
type Bundle struct {
	Namespace string
	ID        string
	// Path is the bundle's directory, absolute.
	Path string

	// removing serialises Remove, and guards what follows.
	removing  sync.Mutex
	dir, work parting
}

// Rootfs is the directory where the shim mounts the container's root file system.
func (b *Bundle) Rootfs() string {
	return filepath.Join(b.Path, rootfsDir)
}

// Empty reports whether there is nothing in the bundle now: what a create leaves that was cut short right at its
// beginning. No shim can belong to it. A bundle that is gone is not empty.
func (b *Bundle) Empty() bool {
	names, err := os.ReadDir(b.Path)
	return err == nil && len(names) == 0
}

func (b *Bundle) file(name string) string {
	return filepath.Join(b.Path, name)
}
