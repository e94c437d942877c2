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

// LinkSocket makes the name that `start` would have given the socket of an id lead to the socket at address (unix://PATH): clients such as
// `ctr shim` dial a container's shim by that name. What is left there of an earlier shim is replaced. Errors: AlreadyExists when somebody
// listens under that name; InvalidArgument when the address has no path.
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

// RemoveLinks removes all names that LinkSocket made for address, where the shim there is gone: containerd's own runtime, which deletes a
// container after a rollback, knows of none.
func (l *Launcher) RemoveLinks(address string) {
	paths := extraPaths([]string{address})
	if len(paths) == 0 {
		return
	}
	dir, target := filepath.Split(paths[0])
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // nothing to remove, or left for the `start` that replaces it
	}
	for _, e := range entries {
		link := filepath.Join(dir, e.Name())
		if e.Type() != os.ModeSymlink {
			continue
		}
		if now, err := os.Readlink(link); err == nil && now == target {
			_ = os.Remove(link)
		}
	}
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
	if info.Mode().Type() != os.ModeSymlink && refusingSocket(path) == nil {
		return errors.Wrapf(errdefs.ErrAlreadyExists, "%s is in use", path)
	}
	return errors.WithStack(os.Remove(path))
}

// Followed returns the endpoint with a link in the place of its socket file followed, as LinkSocket makes one: a shim's `start` names a
// group's process by it, and equal endpoints are to be the same process.
func (e Endpoint) Followed() Endpoint {
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
