// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// LinkSocket makes the name that `start` would have given the socket of an id lead to the socket at address
// (unix://PATH): clients such as `ctr shim` dial a container's shim by that name. What is left there of an earlier shim
// is replaced. Errors: AlreadyExists when a shim listens under that name; InvalidArgument when the address has no
// path.
func (l *Launcher) LinkSocket(ns, id, address string) error {
	link, target, err := l.socketLink(ns, id, address)
	if err != nil {
		return err
	}
	err = os.Symlink(target, link)
	if errors.Is(err, os.ErrExist) {
		if err := clearSocketName(link); err != nil {
			return errors.Wrapf(err, "cannot link the socket of %s/%s", ns, id)
		}
		err = os.Symlink(target, link)
	}
	return errors.Wrapf(err, "cannot link the socket of %s/%s", ns, id)
}

// UnlinkSocket removes the name that LinkSocket made, if it still leads to address.
func (l *Launcher) UnlinkSocket(ns, id, address string) {
	link, target, err := l.socketLink(ns, id, address)
	if err != nil {
		return
	}
	if now, err := os.Readlink(link); err == nil && now == target {
		_ = os.Remove(link)
	}
}

// SweepLinks removes the names that LinkSocket made for sockets that are not there any more, in the directories of
// sockets: containerd's own runtime, which deletes a container after a rollback, knows of none. One pass, whatever is
// there; a name that is in use leads to a socket.
func (l *Launcher) SweepLinks() {
	for _, dir := range l.socketDirs() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // nothing to remove, or left for the `start` that replaces it
		}
		for _, e := range entries {
			if link := filepath.Join(dir, e.Name()); e.Type() == os.ModeSymlink && isSocketName(e.Name()) &&
				isDangling(link) {
				_ = os.Remove(link)
			}
		}
	}
}

// isDangling tells that a link is one as LinkSocket makes it, to a socket beside it that does not exist.
func isDangling(link string) bool {
	target, err := os.Readlink(link)
	if err != nil || !isSocketName(target) {
		return false
	}
	_, err = os.Lstat(filepath.Join(filepath.Dir(link), target))
	return errors.Is(err, os.ErrNotExist)
}

// socketLink returns where the link goes, beside the socket, and what it holds.
func (l *Launcher) socketLink(ns, id, address string) (link, target string, err error) {
	paths := extraPaths([]string{address})
	if len(paths) == 0 {
		return "", "", errors.Wrapf(errdefs.ErrInvalidArgument, "shim address %q is not that of a socket file", address)
	}
	dir, target := filepath.Split(paths[0])
	return filepath.Join(dir, socketName(filepath.Join(l.config.GRPCAddress, ns, id))), target, nil
}

// clearSocketName removes a link, or a socket that refuses.
func clearSocketName(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errors.WithStack(err)
	}
	if refuses, _ := refusingSocket(path); refuses == nil && info.Mode().Type() != os.ModeSymlink {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s is in use", path)
	}
	return errors.WithStack(os.Remove(path))
}

// Followed returns the endpoint with a link in the place of its socket file followed, as LinkSocket makes one: a shim's
// `start` names a group's process by it, and equal endpoints are to be the same process. A bare path at which there is
// a socket file is from then on that file, and never an abstract name.
func (e Endpoint) Followed() Endpoint {
	e = e.pinned()
	t, err := e.target()
	if err != nil || t.kind != kindUnix || !filepath.IsAbs(t.path) {
		return e
	}
	target, err := os.Readlink(t.path)
	if err != nil {
		return e
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(t.path), target)
	}
	e.Address = strings.TrimSuffix(e.Address, t.path) + target
	return e
}
