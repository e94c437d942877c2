// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	stderrors "errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pkg/errors"
)

// Sweep removes, at boot and before the first Create, what earlier runs left: hidden remains of removals that were cut
// short, below State and Root, and work directories without a bundle whose instance live does not vouch for (after a
// reboot the state directory is empty, the root directory is not). live may be nil.
//
// It returns the paths that it removed. What has something mounted in it, or a rootfs that holds something, stays and
// is part of the error; it keeps nothing else from being swept. Warm shims' directories, links and files of whatever
// name, and names that no instance can have are not looked at.
func (l Layout) Sweep(live func(ns, id string) bool) ([]string, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	s := sweep{layout: l, live: live}
	s.eachNamespace(l.State, s.bundles)
	s.eachNamespace(l.Root, s.works)
	return s.removed, stderrors.Join(s.errs...)
}

type sweep struct {
	layout  Layout
	live    func(ns, id string) bool
	removed []string
	errs    []error
}

// eachNamespace calls f with each namespace's name and entries.
func (s *sweep) eachNamespace(top string, f func(ns string, entries []fs.DirEntry)) {
	namespaces, err := readDir(top)
	s.failed(err, top)
	for _, ns := range namespaces {
		if !isCandidate(ns) {
			continue
		}
		dir := filepath.Join(top, ns.Name())
		entries, err := readDir(dir)
		s.failed(err, dir)
		f(ns.Name(), entries)
	}
}

func (s *sweep) bundles(ns string, entries []fs.DirEntry) {
	for _, e := range entries {
		if !sweepable(e) {
			continue
		}
		path := filepath.Join(s.layout.State, ns, e.Name())
		s.remove(path, func() error {
			// A removal parts with rootfs first. Should there be one all the same, what is in it stays.
			if err := removeRootfs(filepath.Join(path, rootfsDir)); err != nil {
				return err
			}
			return removeTree(path)
		})
	}
}

func (s *sweep) works(ns string, entries []fs.DirEntry) {
	for _, e := range entries {
		path := filepath.Join(s.layout.Root, ns, e.Name())
		if sweepable(e) {
			s.remove(path, func() error { return removeTree(path) })
			continue
		}
		if !isCandidate(e) || (s.live != nil && s.live(ns, e.Name())) {
			continue
		}
		bundle := filepath.Join(s.layout.State, ns, e.Name())
		if _, err := os.Lstat(bundle); !errors.Is(err, fs.ErrNotExist) {
			s.failed(err, path)
			continue
		}
		s.remove(path, (&parting{path: path}).run)
	}
}

// sweepable reports whether an entry is what a removal left. A removal renames directories only, so that a link or a
// file of such a name was made by another program: what is behind the link may be the bundle of a living container.
func sweepable(e fs.DirEntry) bool {
	return e.IsDir() && isLeftover(e.Name())
}

func (s *sweep) remove(path string, run func() error) {
	err := refuseMounts(path, "")
	if err == nil {
		err = run()
	}
	if err != nil {
		s.failed(err, path)
		return
	}
	s.removed = append(s.removed, path)
}

func (s *sweep) failed(err error, path string) {
	if err != nil {
		s.errs = append(s.errs, errors.Wrapf(err, "cannot sweep %s", path))
	}
}
