// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// device is the number of a file system.
type device struct{ major, minor int }

func deviceOf(m *mountinfo.Info) device { return device{m.Major, m.Minor} }

// unmountAndRmdir removes an empty directory, after unmounting what is at or below it. rmdir comes first: it fails at a
// mount, and its success, the rule after a delete that the shim took part in, spares the reading of the mount table.
//
// Nothing is detached lazily. A file system that a process still uses would live on out of sight, and the next
// mount of the same layers would write to them beside it. Such a one stays mounted and is ErrInUse.
func unmountAndRmdir(path string) error {
	err := rmdir(path)
	if !occupied(err) {
		return pathError("rmdir", path, err)
	}
	if err := unmountBelow(path); err != nil {
		return err
	}
	return pathError("rmdir", path, rmdir(path))
}

func occupied(err error) bool {
	return err == unix.EBUSY || err == unix.ENOTEMPTY || err == unix.EEXIST
}

// unmountBelow unmounts what is at or below path, in as many rounds as it takes: a mount on top of another hides what
// is below that one.
func unmountBelow(path string) error {
	for first := true; ; first = false {
		mounts, devices, err := mountsBelow(path)
		if err != nil || len(mounts) == 0 {
			return err
		}
		if first {
			h, err := foreignHolder(devices)
			if err != nil {
				return errors.Wrapf(err, "cannot tell whether a process uses %s", path)
			}
			if h != nil {
				return inUse(path, h)
			}
		}
		if err := makePrivate(mounts); err != nil {
			return err
		}
		progress, err := unmountVisible(mounts)
		switch {
		case progress:
		case err == unix.EBUSY:
			return busy(path, mounts)
		default:
			return errors.Wrapf(err, "cannot unmount %s", path)
		}
	}
}

// mountsBelow lists the mounts at or below path, the deepest first, and the file systems that are mounted nowhere else.
func mountsBelow(path string) (below []*mountinfo.Info, only map[device]bool, err error) {
	// The table has no links in its paths.
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, errors.WithStack(err)
	}
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, nil, errors.WithStack(err)
	}
	top := filepath.Join(dir, filepath.Base(path))
	only = make(map[device]bool)
	elsewhere := make(map[device]bool)
	for _, m := range all {
		if isAtOrBelow(m.Mountpoint, top) {
			below, only[deviceOf(m)] = append(below, m), true
		} else {
			elsewhere[deviceOf(m)] = true
		}
	}
	for d := range elsewhere {
		delete(only, d)
	}
	slices.SortStableFunc(below, func(a, b *mountinfo.Info) int { return len(b.Mountpoint) - len(a.Mountpoint) })
	return below, only, nil
}

// makePrivate keeps what is unmounted below these mounts from being unmounted at their peers as well: a volume of the
// host that was mounted below the rootfs with what is mounted in it is one.
func makePrivate(mounts []*mountinfo.Info) error {
	for _, m := range mounts {
		err := atMount(m, func(name string) error { return unix.Mount("", name, "", unix.MS_PRIVATE, "") })
		if err != nil {
			return errors.Wrapf(err, "cannot make the mount %s private", m.Mountpoint)
		}
	}
	return nil
}

// unmountVisible unmounts those that are not hidden below another. It reports whether any was, and else EBUSY if one is
// busy.
func unmountVisible(mounts []*mountinfo.Info) (progress bool, err error) {
	for _, m := range mounts {
		visible := false
		if err := atMount(m, func(string) error { visible = true; return nil }); err != nil {
			return progress, err
		}
		if !visible {
			continue
		}
		switch uerr := unix.Unmount(m.Mountpoint, unix.UMOUNT_NOFOLLOW); {
		case uerr == nil:
			progress = true
		case uerr == unix.EBUSY || err == nil:
			err = uerr
		}
	}
	return progress, err
}

// atMount calls f with a name of the mount, unless another mount hides it: then its path leads to something else, which
// may be anything once there are links in it. The name holds the mount busy until atMount returns.
func atMount(m *mountinfo.Info, f func(name string) error) error {
	fd, err := unix.Open(m.Mountpoint, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return nil
	default:
		return errors.WithStack(&os.PathError{Op: "open", Path: m.Mountpoint, Err: err})
	}
	defer unix.Close(fd)
	id, err := mountID(fd)
	if err != nil || id != m.ID {
		return err
	}
	return f("/proc/self/fd/" + strconv.Itoa(fd))
}

// mountID is the number that the mount table has for the mount of an open file.
func mountID(fd int) (int, error) {
	f, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, errors.WithStack(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "mnt_id:"); ok {
			id, err := strconv.Atoi(strings.TrimSpace(value))
			return id, errors.WithStack(err)
		}
	}
	return 0, errors.Errorf("%s does not name the mount", f.Name())
}

// busy is the error for mounts that the kernel holds for busy, naming a process that uses one.
func busy(path string, mounts []*mountinfo.Info) error {
	var paths []string
	for _, m := range mounts {
		paths = append(paths, m.Mountpoint)
	}
	h, err := holderBelow(paths...)
	switch {
	case err != nil:
		return errors.Wrapf(ErrInUse, "%s is busy, and it cannot be told by what: %v", path, err)
	case h == nil:
		return errors.Wrapf(ErrInUse,
			"%s is busy, by no process that can be found: a loop device, swap, or a mount in another namespace", path)
	}
	return inUse(path, h)
}

func inUse(path string, h *holder) error {
	return errors.Wrapf(ErrInUse, "%s is used by %s; end it or let it leave", path, h)
}

// isolate makes private what is mounted at or below path.
func isolate(path string) error {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC,
		unix.STATX_TYPE, &st)
	if err == unix.ENOENT || err == nil && st.Attributes_mask&^st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 &&
		firstName(path) == "" {
		return nil // the rule: the mount table of a busy machine is long
	}
	mounts, _, err := mountsBelow(path)
	if err != nil {
		return err
	}
	return makePrivate(mounts)
}
