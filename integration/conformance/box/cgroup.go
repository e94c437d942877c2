// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package box

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

const namePrefix = "shimyard-box-"

// Prefix begins the names of the directories that the boxes of this process have on the machine.
func Prefix() string { return fmt.Sprintf("%s%d-", namePrefix, os.Getpid()) }

// hierarchy is one mounted cgroup hierarchy.
type hierarchy struct {
	mountpoint string
	version2   bool
	data       string // mount options that name the controllers
}

// hierarchies reads what is mounted below /sys/fs/cgroup.
func hierarchies() ([]hierarchy, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, errors.Wrap(err, "cannot find the cgroup hierarchies")
	}
	var found []hierarchy
	for line := range strings.Lines(string(data)) {
		before, after, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(g) < 3 || !strings.HasPrefix(f[4], cgroupRoot) {
			continue
		}
		switch g[0] {
		case "cgroup2":
			found = append(found, hierarchy{mountpoint: f[4], version2: true})
		case "cgroup":
			found = append(found, hierarchy{mountpoint: f[4], data: controllers(g[2])})
		}
	}
	if len(found) == 0 {
		return nil, errors.Errorf("cannot find a cgroup hierarchy below %s", cgroupRoot)
	}
	return found, nil
}

const cgroupRoot = "/sys/fs/cgroup"

// controllers keeps of the super block's options those that name the hierarchy.
func controllers(options string) string {
	var keep []string
	for o := range strings.SplitSeq(options, ",") {
		switch {
		case strings.HasPrefix(o, "name="):
			keep = append(keep, "none", o)
		case o != "rw" && o != "ro" && !strings.Contains(o, "="):
			keep = append(keep, o)
		}
	}
	return strings.Join(keep, ",")
}

// makeCgroups makes a directory in each hierarchy. It returns those that it made, also with an error.
func makeCgroups(name string) ([]string, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var made []string
	for _, h := range all {
		dir := filepath.Join(h.mountpoint, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return made, errors.Wrap(err, "cannot make the cgroup of the box")
		}
		made = append(made, dir)
		// version 1 begins with none, and takes no process then
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(h.mountpoint, file))
			if err != nil || h.version2 {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
				return made, errors.Wrap(err, "cannot give the box its share of CPUs and memory nodes")
			}
		}
	}
	return made, nil
}

// enter moves the calling process into the directories.
func enter(dirs []string) error {
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return errors.Wrapf(err, "cannot enter the cgroup %s", dir)
		}
	}
	return nil
}

// delegate makes all controllers of a version 2 hierarchy, mounted at root, usable below it: processes move to a leaf
// first, since one that has processes cannot have controllers in its children.
func delegate(root string) error {
	have, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil || len(bytes.TrimSpace(have)) == 0 {
		return nil // version 1 beside it has the controllers
	}
	leaf := filepath.Join(root, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return errors.Wrap(err, "cannot make the cgroup of the box's own processes")
	}
	if err := enter([]string{leaf}); err != nil {
		return err
	}
	for c := range strings.FieldsSeq(string(have)) {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return errors.Wrapf(err, "cannot hand on the cgroup controller %s", c)
		}
	}
	return nil
}

// removeCgroups tries for a while: a process that was just killed is in its cgroup until it was reaped. What still
// stays is found by the next sweep.
func removeCgroups(roots []string) {
	for range 100 {
		left := false
		for _, root := range roots {
			left = !removeCgroup(root) || left
		}
		if !left {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func removeCgroup(root string) bool {
	var dirs []string
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = unix.Rmdir(dirs[i]) // the root's tells
	}
	_, err := os.Lstat(root)
	return os.IsNotExist(err)
}

// sweep removes what runs that were killed have left: directories on the machine and in its cgroup hierarchies.
func sweep() {
	for _, pattern := range []string{os.TempDir(), cgroupRoot, cgroupRoot + "/*"} {
		found, _ := filepath.Glob(filepath.Join(pattern, namePrefix+"*")) // the pattern is well-formed
		for _, dir := range found {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), namePrefix), "-")
			if n, err := strconv.Atoi(pid); err != nil || unix.Kill(n, 0) == nil {
				continue
			}
			if strings.HasPrefix(dir, cgroupRoot) {
				removeCgroup(dir)
			} else {
				_ = os.Remove(dir)
			}
		}
	}
}
