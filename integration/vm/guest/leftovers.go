// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pkg/errors"
)

const (
	stateDir = "/run/containerd"
	rootDir  = "/var/lib/containerd"
	tasksDir = "io.containerd.runtime.v2.task"
)

// leftovers prints whatever of a container of a namespace, or of a shim, is on the node, a line each. It is a program
// and not a script because it is run over and over, and each process of a script costs more than all of this where
// there is no KVM.
func leftovers(args []string) error {
	namespace, err := argument(args, 0)
	if err != nil {
		return err
	}
	return look(os.Stdout, "/", namespace)
}

// look is leftovers below a directory that stands for the root of all.
func look(w io.Writer, top, namespace string) error {
	for _, dir := range []struct {
		path, what string
		depth      int // from which on what is there is a leftover
	}{
		{filepath.Join(stateDir, tasksDir), "bundle", 2},
		{filepath.Join(rootDir, tasksDir), "work dir", 2},
		{filepath.Join(stateDir, "s"), "socket", 1},
		{filepath.Join(stateDir, "fifo"), "fifo", 1},
		{filepath.Join(stateDir, "runc"), "state of runc", 2},
	} {
		if err := below(w, filepath.Join(top, dir.path), dir.what, dir.depth); err != nil {
			return err
		}
	}
	warm, _ := filepath.Glob(filepath.Join(top, stateDir, tasksDir, "._*"))
	for _, path := range warm {
		fmt.Fprintf(w, "directory of a warm shim: %s\n", path)
	}
	if err := mounts(w, top); err != nil {
		return err
	}
	if err := cgroups(w, filepath.Join(top, "sys/fs/cgroup"), namespace); err != nil {
		return err
	}
	all, err := shims(top)
	for _, s := range all {
		fmt.Fprintf(w, "process: %d %s\n", s.pid, s.cmdline)
	}
	return err
}

func below(w io.Writer, dir, what string, depth int) error {
	return walk(dir, func(path string) {
		if strings.Count(strings.TrimPrefix(path, dir), "/") >= depth {
			fmt.Fprintf(w, "%s: %s\n", what, path)
		}
	})
}

func cgroups(w io.Writer, top, namespace string) error {
	return walk(top, func(path string) {
		dir, name := filepath.Split(path)
		own := dir == filepath.Join(top, namespace)+"/" ||
			strings.HasPrefix(name, namespace+"-") && strings.HasSuffix(name, ".scope")
		if info, err := os.Lstat(path); own && err == nil && info.IsDir() {
			fmt.Fprintf(w, "cgroup: %s\n", path)
		}
	})
}

// walk calls each for all that is below dir; what goes meanwhile, dir itself included, is none.
func walk(dir string, each func(path string)) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return errors.Wrap(err, "cannot look for leftovers")
		}
		if path != dir {
			each(path)
		}
		return nil
	})
}

func mounts(w io.Writer, top string) error {
	data, err := os.ReadFile(filepath.Join(top, "proc/mounts"))
	if err != nil {
		return errors.Wrap(err, "cannot read the mounts")
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, " "+stateDir+"/") || strings.Contains(line, " "+rootDir+"/") {
			fmt.Fprintf(w, "mount: %s", line)
		}
	}
	return nil
}

// shim is a process of a shim.
type shim struct {
	pid     int
	cmdline string // with spaces between the arguments
}

func shims(top string) ([]shim, error) {
	names, err := filepath.Glob(filepath.Join(top, "proc/[0-9]*/comm"))
	if err != nil {
		return nil, errors.Wrap(err, "cannot list the processes")
	}
	var found []shim
	for _, path := range names {
		comm, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(comm)) != "containerd-shim" { // the kernel keeps 15 bytes of a name
			continue // it has ended meanwhile, or is another program's
		}
		dir := filepath.Dir(path)
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // empty once it has ended
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, errors.Wrap(err, "cannot read a pid")
		}
		found = append(found, shim{pid, strings.ReplaceAll(string(cmdline), "\x00", " ")})
	}
	return found, nil
}
