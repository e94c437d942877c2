// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/pkg/errors"
)

// Listing is what is in a state directory.
type Listing struct {
	// Bundles, by namespace and id, as far as their names tell: Recognized looks closer.
	Bundles []*Bundle
	// Unknown are the paths of what is not a bundle: files and links where directories belong, names that no instance
	// can have, namespaces that cannot be read. Nothing in this package touches them.
	Unknown []string
}

// List reads which bundles there are, and looks into none. Hidden entries are left out. A state directory that does not
// exist holds none.
func (l Layout) List() (Listing, error) {
	var listing Listing
	if err := l.check(); err != nil {
		return listing, err
	}
	namespaces, err := readDir(l.State)
	if err != nil {
		return listing, errors.Wrapf(err, "cannot list bundles in %s", l.State)
	}
	for _, ns := range namespaces {
		if isHidden(ns.Name()) {
			continue
		}
		path := filepath.Join(l.State, ns.Name())
		if !isCandidate(ns) {
			listing.Unknown = append(listing.Unknown, path)
			continue
		}
		entries, err := readDir(path)
		if err != nil {
			// One namespace that cannot be read must not hide the others.
			listing.Unknown = append(listing.Unknown, path)
			continue
		}
		if err := l.listNamespace(ns.Name(), entries, &listing); err != nil {
			return listing, err
		}
	}
	return listing, nil
}

func (l Layout) listNamespace(ns string, entries []fs.DirEntry, listing *Listing) error {
	for _, e := range entries {
		if isHidden(e.Name()) {
			continue
		}
		path := filepath.Join(l.State, ns, e.Name())
		if !isCandidate(e) {
			listing.Unknown = append(listing.Unknown, path)
			continue
		}
		b, err := l.bundle(ns, e.Name())
		if err != nil {
			return err
		}
		listing.Bundles = append(listing.Bundles, b)
	}
	return nil
}

// isCandidate reports whether an entry can be a namespace or a bundle: a directory, not a link, with a name that an
// instance can have.
func isCandidate(e fs.DirEntry) bool {
	return e.IsDir() && identifiers.Validate(e.Name()) == nil
}

// Recognized reports whether the directory is that of a bundle: empty, or with a file in it that belongs in one. One
// that cannot be read is not: it is none to be touched.
func (b *Bundle) Recognized() bool {
	entries, err := os.ReadDir(b.Path)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if known[e.Name()] {
			return true
		}
	}
	return len(entries) == 0
}

// readDir is os.ReadDir, with nothing in a directory that does not exist.
func readDir(path string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, errors.WithStack(err)
}
