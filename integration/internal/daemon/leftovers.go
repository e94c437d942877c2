// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long a daemon has for what it does after its answer: a shim
// ends on its own once its last task is deleted, the kernel removes a cgroup's
// directory a moment after its last process.
const settle = 20 * time.Second

// Leftovers lists what the test's containers left behind: processes, bundles,
// work dirs, mounts, sockets, fifos, runc's state, cgroups, and, with the
// daemon running, file descriptors and goroutines beyond those of Baseline. It
// waits for what is on its way out. The containers must have been deleted.
func (d *Daemon) Leftovers() []string {
	d.closeClient()
	deadline := time.Now().Add(settle)
	for {
		left := d.look()
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (d *Daemon) look() []string {
	var left []string
	for _, p := range d.Processes() {
		left = append(left, "process "+p.String())
	}
	for _, plugin := range []string{taskPlugin, sandboxPlugin} {
		for _, parent := range []string{"state", "root"} {
			left = append(left, entries("bundle or work dir", filepath.Join(d.Dir, parent, plugin), 2)...)
		}
	}
	left = append(left, d.warmShims()...)
	left = append(left, entries("socket", d.SocketDir(), 1)...)
	left = append(left, entries("fifo", d.FIFODir(), 1)...)
	left = append(left, entries("state of runc", d.RuncRoot(), 2)...)
	if d.ns != nil {
		left = append(left, entries("socket", filepath.Join(d.ns.root(), "run/containerd/s"), 1)...)
	}
	left = append(left, d.mounts()...)
	if !d.emptyCgroups {
		left = append(left, d.usedCgroups()...)
	}
	return append(left, d.overUsage()...)
}

// AllowEmptyCgroups is for tests that end the daemon in the middle of creates:
// a shim that loses the connection of a Create kills its `runc create`, and what
// runc has made by then is not on record. Cgroups with a process in them are
// found by the process.
func (d *Daemon) AllowEmptyCgroups() { d.emptyCgroups = true }

// usedCgroups lists the containers' cgroups, each with its hierarchies.
func (d *Daemon) usedCgroups() []string {
	hierarchies := map[string][]string{}
	for _, dir := range d.cgroups() {
		if hierarchy, name, found := strings.Cut(dir, d.Cgroup()+"/"); found {
			hierarchies[name] = append(hierarchies[name], filepath.Base(hierarchy))
		}
	}
	var left []string
	for name, in := range hierarchies {
		left = append(left, fmt.Sprintf("cgroup %s in %v", name, in))
	}
	sort.Strings(left)
	return left
}

// entries lists what is at the given depth below dir; a directory of another
// depth (a namespace's) may stay.
func entries(what, dir string, depth int) []string {
	pattern := dir + strings.Repeat("/*", depth)
	found, _ := filepath.Glob(pattern) // the pattern is well-formed
	for i, path := range found {
		found[i] = what + " " + path
	}
	return found
}

// Process is a process that belongs to a daemon's directory.
type Process struct {
	Pid  int
	Args string
	Why  string
}

func (p Process) String() string { return fmt.Sprintf("%d (%s, by its %s)", p.Pid, p.Args, p.Why) }

// Is reports whether the program's name begins so.
func (p Process) Is(prefix string) bool {
	program, _, _ := strings.Cut(p.Args, " ")
	return strings.HasPrefix(filepath.Base(program), prefix)
}

// Processes lists the shims, containers and helpers: every process that names
// the directory in its arguments, environment, working directory or cgroup, but
// for the daemon and the test. Zombies do not count, their parent does.
func (d *Daemon) Processes() []Process {
	var found []Process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() || d.proc != nil && pid == d.Pid() {
			continue
		}
		why := d.belongs(dir)
		if why == "" {
			continue
		}
		args, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(args) == 0 { // gone, or a zombie
			continue
		}
		found = append(found, Process{Pid: pid,
			Args: strings.TrimSpace(string(bytes.ReplaceAll(args, []byte{0}, []byte{' '}))), Why: why})
	}
	return found
}

// belongs says what about the process in dir (of /proc) names the daemon's
// directory. A process that vanishes meanwhile does not belong.
func (d *Daemon) belongs(dir string) string {
	if cwd, err := os.Readlink(dir + "/cwd"); err == nil && within(cwd, d.Dir) {
		return "working directory"
	}
	needle := []byte(d.Dir)
	for _, file := range []string{"cmdline", "environ"} {
		if data, err := os.ReadFile(filepath.Join(dir, file)); err == nil && bytes.Contains(data, needle) {
			return file
		}
	}
	data, err := os.ReadFile(dir + "/cgroup")
	if err == nil && bytes.Contains(data, []byte(d.Cgroup())) {
		return "cgroup"
	}
	return ""
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// mounts lists the mounts below the directory, in the daemon's namespace and in
// the test's.
func (d *Daemon) mounts() []string {
	var left []string
	for _, target := range d.mountpoints() {
		left = append(left, "mount "+target)
	}
	return left
}

func (d *Daemon) mountpoints() []string {
	files := []string{"/proc/self/mountinfo"}
	if d.ns != nil {
		files = append(files, fmt.Sprintf("/proc/%d/mountinfo", d.ns.holder.Process.Pid))
	}
	seen := map[string]bool{}
	for _, file := range files {
		data, _ := os.ReadFile(file) // the holder lives as long as the daemon
		for _, line := range strings.Split(string(data), "\n") {
			if f := strings.Fields(line); len(f) > 4 && within(f[4], d.Dir) {
				seen[f[4]] = true
			}
		}
	}
	var list []string
	for target := range seen {
		list = append(list, target)
	}
	sort.Sort(sort.Reverse(sort.StringSlice(list))) // deepest first
	return list
}

// cgroups lists the directories of the test's cgroups in all hierarchies,
// deepest first.
func (d *Daemon) cgroups() []string {
	var list []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		roots, _ := filepath.Glob(pattern + d.Cgroup())
		for _, root := range roots {
			_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					list = append(list, path)
				}
				return nil
			})
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(list)))
	return list
}

// sweep removes everything, by force where the daemon failed to.
func (d *Daemon) sweep() []error {
	var errs []error
	for range 20 {
		procs := d.Processes()
		for _, p := range procs {
			_ = unix.Kill(p.Pid, unix.SIGKILL) // it may have gone
		}
		if len(procs) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, target := range d.mountpoints() {
		_ = unix.Unmount(target, unix.MNT_DETACH) // a private one ends with its namespace
	}
	if d.ns != nil {
		d.ns.close()
	}
	errs = append(errs, d.removeCgroups()...)
	if len(d.mountsHere()) > 0 {
		return append(errs, fmt.Errorf("cannot remove %s: mounts below it stay", d.Dir))
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// removeCgroups tries for a while: a process that was just killed is in its
// cgroup until it has been reaped.
func (d *Daemon) removeCgroups() (errs []error) {
	for range 40 {
		errs = nil
		for _, dir := range d.cgroups() {
			if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
				errs = append(errs, err)
			}
		}
		if len(errs) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errs
}

func (d *Daemon) mountsHere() []string {
	ns := d.ns
	d.ns = nil
	defer func() { d.ns = ns }()
	return d.mountpoints()
}
