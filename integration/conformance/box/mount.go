// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package box

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// mountRoot lays a file system in memory over the machine's, and returns where.
func (s *Spec) mountRoot() (string, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", errors.Wrap(err, "cannot make the mounts private")
	}
	if err := mount("tmpfs", s.dir, "tmpfs", 0, "mode=755"); err != nil {
		return "", err
	}
	root, upper, work := filepath.Join(s.dir, "root"), filepath.Join(s.dir, "upper"), filepath.Join(s.dir, "work")
	for _, dir := range []string{root, upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", errors.Wrap(err, "cannot make the root of the box")
		}
	}
	// Layers are copied: a lower directory below another one, as theirs are below /, is refused.
	for _, layer := range slices.Backward(s.Layers) {
		if err := copyTree(layer, upper); err != nil {
			return "", errors.Wrapf(err, "cannot add the layer %s", layer)
		}
	}
	data := "lowerdir=/,upperdir=" + escape.Replace(upper) + ",workdir=" + escape.Replace(work)
	return root, mount("overlay", root, "overlay", 0, data)
}

// copyTree copies directories, regular files and links, over what is there.
func copyTree(src, dst string) error {
	return filepath.WalkDir(src, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dst, strings.TrimPrefix(path, src))
		info, err := e.Info()
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(to, info.Mode().Perm())
		}
		if err := os.Remove(to); err != nil && !os.IsNotExist(err) {
			return err
		}
		if e.Type()&fs.ModeSymlink != 0 {
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, to)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, info.Mode().Perm())
	})
}

// memory are the directories that are empty at first and whose file system can carry overlay mounts, which an overlay
// cannot.
var memory = []string{"/tmp", "/run", "/var/tmp", "/var/lib", "/var/log", "/opt", "/root", Dir}

// mountKernel mounts what the kernel offers, and memory.
func mountKernel(root string) error {
	type entry struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}
	list := []entry{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/dev", "/dev", "", unix.MS_BIND, ""},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	}
	for _, dir := range memory {
		mode := "mode=755"
		if strings.HasSuffix(dir, "tmp") {
			mode = "mode=1777"
		}
		list = append(list, entry{"tmpfs", dir, "tmpfs", 0, mode})
	}
	for _, m := range list {
		target := filepath.Join(root, m.target)
		if m.target != "/dev/pts" && m.target != "/dev/shm" { // the machine has these
			if err := os.MkdirAll(target, 0o755); err != nil {
				return errors.Wrapf(err, "cannot make %s", m.target)
			}
		}
		if err := mount(m.source, target, m.fstype, m.flags, m.data); err != nil {
			return err
		}
	}
	return nil
}

// mountCgroups mounts each hierarchy where the machine has it, as the cgroup namespace shows it.
func mountCgroups(root string, all []hierarchy) error {
	if !(len(all) == 1 && all[0].mountpoint == cgroupRoot) {
		if err := mount("tmpfs", filepath.Join(root, cgroupRoot), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC,
			"mode=755"); err != nil {
			return err
		}
	}
	for _, h := range all {
		target, fstype := filepath.Join(root, h.mountpoint), "cgroup"
		if h.version2 {
			fstype = "cgroup2"
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return errors.Wrap(err, "cannot make a place for a cgroup hierarchy")
		}
		if err := mount(fstype, target, fstype, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.data); err != nil {
			return err
		}
		if h.version2 {
			if err := delegate(target); err != nil {
				return err
			}
		}
	}
	return nil
}

// share binds the machine's directories that are to be seen.
func (s *Spec) share(root string) error {
	for _, dir := range s.Shared {
		if err := bind(root, dir, true); err != nil {
			return err
		}
	}
	if s.Out == "" {
		return nil
	}
	return bind(root, s.Out, false)
}

func bind(root, dir string, readOnly bool) error {
	target := filepath.Join(root, dir)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return errors.Wrapf(err, "cannot make a place for %s", dir)
	}
	if err := mount(dir, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if !readOnly {
		return nil
	}
	return mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	return errors.Wrapf(unix.Mount(source, target, fstype, flags, data), "cannot mount %s %s at %s", fstype, source,
		target)
}
