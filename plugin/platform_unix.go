// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package plugin

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/platforms"
)

func defaultPlatforms() []string { return []string{platforms.DefaultString()} }

// defaultSocketDir is where stock containerd of this version puts sockets: shims that it left are found there, and
// those that we leave. It is "" if nothing will do.
func defaultSocketDir() string {
	return chooseSocketDir(os.Geteuid(), os.Getenv("XDG_RUNTIME_DIR"), defaults.DefaultStateDir, "/run", "/tmp")
}

// chooseSocketDir takes the first candidate that the user owns; root takes the state dir's, which the shim makes.
func chooseSocketDir(uid int, xdg, state, run, tmp string) string {
	candidates := []string{filepath.Join(state, "s")}
	if uid == 0 {
		return candidates[0]
	}
	if xdg != "" {
		candidates = append(candidates, filepath.Join(xdg, "containerd", "s"))
	}
	id := strconv.Itoa(uid)
	candidates = append(candidates, filepath.Join(run, id, "containerd", "s"), filepath.Join(tmp, "containerd-s-"+id))
	for _, dir := range candidates {
		if len(dir) <= maxSocketDirLen && ownDir(dir, uid) {
			return dir
		}
	}
	return ""
}

// ownDir makes dir with mode 0700, or sees that it is a directory (no link: any user can make one in /tmp) of the
// user's with that mode.
func ownDir(dir string, uid int) bool {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false
	}
	fi, err := os.Lstat(dir)
	if err != nil || !fi.IsDir() {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != uid {
		return false
	}
	return fi.Mode().Perm() == 0o700 || os.Chmod(dir, 0o700) == nil
}
