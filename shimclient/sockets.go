// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/pkg/errors"
)

const (
	// refusalPause is between the two refusals that it takes to remove a
	// socket: between bind and listen a new one refuses too.
	refusalPause = 20 * time.Millisecond
	// connectTime bounds one attempt to connect to a socket that may be unused.
	connectTime = time.Second
)

// RemoveSockets removes the socket files that shims started under these ids may
// have left behind, and those at the extra addresses (unix://PATH or an absolute
// path; others are passed over). A file goes only if it is a socket and connecting
// to it is refused: a socket with a listener belongs to a living group. Whether there is one is returned.
// Nothing to do on Windows, where sockets are pipes.
func (l *Launcher) RemoveSockets(ns string, ids []string, extra ...string) (answers bool) {
	if runtime.GOOS == "windows" {
		return false
	}
	seen := make(map[string]bool)
	var refusing []os.FileInfo
	var paths []string
	for _, path := range append(l.socketPaths(ns, ids), extraPaths(extra)...) {
		if seen[path] {
			continue
		}
		seen[path] = true
		info, answered := refusingSocket(path)
		answers = answers || answered
		if info != nil {
			refusing = append(refusing, info)
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		return answers
	}
	time.Sleep(refusalPause)
	for i, path := range paths {
		if again, _ := refusingSocket(path); again != nil && os.SameFile(refusing[i], again) {
			_ = os.Remove(path)
		}
	}
	return answers
}

// SocketAddresses are the addresses of the sockets, or links to one, that exist under the names which a shim's `start`
// gives for these ids. Whether a shim listens there is not known. None on Windows, where sockets are pipes.
func (l *Launcher) SocketAddresses(ns string, ids []string) []string {
	if runtime.GOOS == "windows" {
		return nil
	}
	var found []string
	for _, path := range l.socketPaths(ns, ids) {
		if info, err := os.Stat(path); err == nil && info.Mode().Type() == os.ModeSocket {
			found = append(found, "unix://"+path)
		}
	}
	return found
}

// socketPaths are the names that pkg/shim's CreateSocketAddress gives, in the
// configured directory and in the one of shims that do not know the setting.
func (l *Launcher) socketPaths(ns string, ids []string) []string {
	dirs := l.socketDirs()
	var paths []string
	for _, id := range ids {
		if id == "" {
			continue
		}
		name := filepath.Join(l.config.GRPCAddress, ns, id)
		for _, dir := range dirs {
			paths = append(paths, filepath.Join(dir, socketName(name)),
				filepath.Join(dir, socketName(filepath.Join(name, "debug"))))
		}
	}
	return paths
}

func (l *Launcher) socketDirs() []string {
	dirs := []string{filepath.Join(defaults.DefaultStateDir, "s")}
	if l.config.SocketDir != "" && l.config.SocketDir != dirs[0] {
		dirs = append(dirs, l.config.SocketDir)
	}
	return dirs
}

func socketName(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// isSocketName tells a name that socketName can have given.
func isSocketName(s string) bool {
	sum, err := hex.DecodeString(s)
	return err == nil && len(sum) == sha256.Size
}

func extraPaths(addresses []string) []string {
	var paths []string
	for _, address := range addresses {
		if path := strings.TrimPrefix(strings.TrimSpace(address), "unix://"); filepath.IsAbs(path) {
			paths = append(paths, filepath.Clean(path))
		}
	}
	return paths
}

// refusingSocket returns what is at path if it is a socket and refuses, and whether it is one that answers.
func refusingSocket(path string) (refuses os.FileInfo, answers bool) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return nil, true
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, false
	}
	return info, false
}
