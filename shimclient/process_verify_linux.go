// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// VerifyShim checks that the process pid, which a shim named as its own, is a
// shim of that binary: its executable is that file, or one of the same name (the
// file may have been replaced since), or it carries the token of the launch
// (scripts run as their interpreter). It is never the daemon itself. Errors:
// NotFound when there is no such process, FailedPrecondition when it is another,
// Unavailable when it does not let itself be looked at.
func VerifyShim(ctx context.Context, pid int, b Binary, token string) (ProcessID, error) {
	id, err := LookupProcess(pid)
	if err != nil {
		return ProcessID{}, err
	}
	matches := false
	if pid != os.Getpid() {
		if matches, err = isShimOf(ctx, id, b, token); err != nil {
			return ProcessID{}, errors.Wrapf(err, "cannot tell whether process %d is a shim of %s", pid, b.Path)
		}
	}
	// What was read is this process's only if it is still there.
	if !id.Alive() {
		return ProcessID{}, id.gone()
	}
	if !matches {
		return ProcessID{}, errors.Wrapf(errdefs.ErrFailedPrecondition,
			"process %d is not a shim of %s, nor of its launch", pid, b.Path)
	}
	return id, nil
}

func isShimOf(ctx context.Context, id ProcessID, b Binary, token string) (bool, error) {
	if runsByName(id.Pid, b) {
		return true, nil
	}
	runs, err := beside(ctx, id, func() (bool, error) { return runsFile(id.Pid, b), nil })
	if runs || checkToken(token) != nil {
		return runs, err
	}
	has, _, eerr := carries(ctx, id, token)
	if has {
		return true, nil
	}
	if err == nil && eerr != nil && sightOf(id, eerr) != unseen {
		err = eerr
	}
	return false, err
}

// runsByName compares the text of the link to the executable, and touches no file
// that is the process's.
func runsByName(pid int, b Binary) bool {
	target, err := os.Readlink(procPath(pid, "exe"))
	if err != nil || b.Path == "" {
		return false
	}
	name := filepath.Base(strings.TrimSuffix(target, deletedMark))
	if name == filepath.Base(b.Path) {
		return true
	}
	resolved, err := filepath.EvalSymlinks(b.Path)
	return err == nil && name == filepath.Base(resolved)
}

// runsFile compares the executable itself, which may have been renamed. The file
// system that it is on may not answer.
func runsFile(pid int, b Binary) bool {
	exe, err := IdentifyFile(procPath(pid, "exe"))
	if err != nil {
		return false
	}
	if now, err := IdentifyFile(b.Path); err == nil && exe.dev == now.dev && exe.inode == now.inode {
		return true
	}
	return b.File != (FileID{}) && exe == b.File
}

// deletedMark is what the kernel appends to a link in /proc whose target is no
// longer there.
const deletedMark = " (deleted)"
