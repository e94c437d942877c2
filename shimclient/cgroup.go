// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bufio"
	"bytes"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// cgroupRoot is where the kernel's cgroup hierarchies are mounted, as systemd and runc have it.
const cgroupRoot = "/sys/fs/cgroup"

// MemoryCgroup returns the directory of the cgroup that accounts for a process's memory, of version 2 or 1. NotFound
// when the process is gone, or has none of its own kind to show: the root, or one outside of this process's cgroup
// namespace.
func MemoryCgroup(pid int) (string, error) {
	data, err := readSmall("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", errors.Wrapf(errdefs.ErrNotFound, "cannot read the cgroup of process %d: %v", pid, err)
	}
	return memoryCgroup(string(data))
}

// memoryCgroup reads /proc/PID/cgroup (cgroups(7)): ID:CONTROLLERS:PATH. A version 1 hierarchy with the memory
// controller wins, since the line of version 2 is there without any controllers too.
func memoryCgroup(lines string) (string, error) {
	root, path := "", ""
	for line := range strings.Lines(lines) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		if slices.Contains(strings.Split(fields[1], ","), "memory") {
			root, path = filepath.Join(cgroupRoot, "memory"), fields[2]
			break
		}
		if fields[0] == "0" {
			root, path = cgroupRoot, fields[2]
		}
	}
	if !filepath.IsAbs(path) || path == "/" || strings.HasPrefix(path, "/..") {
		return "", errors.Wrapf(errdefs.ErrNotFound, "no memory cgroup in %q", shortLines(lines))
	}
	return filepath.Join(root, path), nil
}

func shortLines(lines string) string {
	const limit = 256
	return lines[:min(len(lines), limit)]
}

// OOMKills returns how many processes of a memory cgroup the kernel has killed so far for lack of memory: oom_kill in
// memory.events, of version 2, or in memory.oom_control, of version 1 (since Linux 4.13). NotFound when the cgroup is
// gone or does not tell.
func OOMKills(cgroup string) (uint64, error) {
	for _, name := range []string{"memory.events", "memory.oom_control"} {
		data, err := readSmall(filepath.Join(cgroup, name))
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(bytes.NewReader(data))
		for lines.Scan() {
			if key, value, ok := strings.Cut(lines.Text(), " "); ok && key == "oom_kill" {
				n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
				return n, errors.Wrapf(err, "cannot read %s of %s", name, cgroup)
			}
		}
	}
	return 0, errors.Wrapf(errdefs.ErrNotFound, "%s does not tell how many were killed for lack of memory", cgroup)
}
