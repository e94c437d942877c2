// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for mounts and owners")
	}
}

// mountOn mounts and sees to it that nothing stays mounted, whatever the test does: also when the mount was carried off
// with a directory above.
func mountOn(t testing.TB, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(target, 0o755))
	require.NoError(t, unix.Mount(source, target, fstype, flags, data))
	top, err := filepath.EvalSymlinks(filepath.Dir(t.TempDir()))
	require.NoError(t, err)
	t.Cleanup(func() {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(top))
		require.NoError(t, err)
		for _, m := range mounts {
			_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
		}
	})
}

func bind(t testing.TB, source, target string) {
	t.Helper()
	mountOn(t, source, target, "", unix.MS_BIND, "")
}

func tmpfs(t testing.TB, target, data string) {
	t.Helper()
	mountOn(t, "tmpfs", target, "tmpfs", 0, data)
}

// precious is a directory with a user's data, for which requirePrecious looks afterwards.
func precious(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "precious"), "x")
	return dir
}

func requirePrecious(t testing.TB, dir string) {
	t.Helper()
	require.Equal(t, "x", content(t, filepath.Join(dir, "precious")))
}

func requireNoMounts(t testing.TB, l Layout) {
	t.Helper()
	for _, top := range []string{l.State, l.Root} {
		mounted, err := mountInTable(top, "")
		require.NoError(t, err)
		require.Empty(t, mounted)
	}
}

func TestCreateRemappedGroup(t *testing.T) {
	needRoot(t)
	l := newLayout(t)
	b, err := l.Create(testNS, testID, CreateOptions{GID: 4200})
	require.NoError(t, err)
	requireMode(t, b.Path, os.ModeDir|0o710)
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(b.Path, &st))
	require.Equal(t, []uint32{0, 4200}, []uint32{st.Uid, st.Gid})
	require.NoError(t, unix.Lstat(b.Rootfs(), &st))
	require.Equal(t, uint32(0), st.Gid)
}

func TestCreateModesWhateverTheUmask(t *testing.T) {
	l := newLayout(t)
	defer unix.Umask(unix.Umask(0o077))
	b := create(t, l, testID)
	requireMode(t, b.Path, os.ModeDir|0o700)
	requireMode(t, b.Rootfs(), os.ModeDir|0o711)
	requireMode(t, b.work.path, os.ModeDir|0o711)
}

// TestCreateUndoesOnFullDisk lets the file system run out of inodes at each step of a create in turn, and of blocks at
// the spec.
func TestCreateUndoesOnFullDisk(t *testing.T) {
	needRoot(t)
	var failures int
	for inodes := 4; ; inodes++ {
		dir := t.TempDir()
		tmpfs(t, dir, fmt.Sprintf("nr_inodes=%d", inodes))
		if !createOrNothing(t, dir, []byte("{}")) {
			failures++
			continue
		}
		break
	}
	require.Greater(t, failures, 4, "each of bundle, rootfs, work dir, link and spec fails once")

	dir := t.TempDir()
	tmpfs(t, dir, "size=16k")
	require.False(t, createOrNothing(t, dir, make([]byte, 1<<20)))
	require.True(t, createOrNothing(t, dir, []byte("{}")), "after the failure there is room again")
}

// createOrNothing reports whether a create succeeded; if not, nothing of it may be left.
func createOrNothing(t *testing.T, dir string, spec []byte) bool {
	l := Layout{State: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root")}
	_, err := l.Create(testNS, testID, CreateOptions{Spec: spec})
	if err == nil {
		return true
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	requireNothing(t, l)
	return false
}

func TestCreateRefusesMountInLeftoverWork(t *testing.T) {
	needRoot(t)
	l := newLayout(t)
	data := precious(t)
	target := filepath.Join(l.Root, testNS, testID, "m")
	bind(t, data, target)
	_, err := l.Create(testNS, testID, CreateOptions{})
	require.ErrorIs(t, err, ErrMounted)
	require.ErrorContains(t, err, target)
	require.Empty(t, names(t, filepath.Join(l.State, testNS)))
	require.Equal(t, "x", content(t, filepath.Join(target, "precious")))
}

// TestRemoveUnmountsRootfs: what was mounted keeps its content.
func TestRemoveUnmountsRootfs(t *testing.T) {
	needRoot(t)
	l := newLayout(t)
	b := create(t, l, testID)
	fill(t, b)
	layers, data := t.TempDir(), t.TempDir()
	for _, dir := range []string{"lower", "upper", "work"} {
		require.NoError(t, os.Mkdir(filepath.Join(layers, dir), 0o755))
	}
	put(t, filepath.Join(data, "precious"), "x")
	mountOn(t, "overlay", b.Rootfs(), "overlay", 0,
		fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", layers))
	put(t, filepath.Join(b.Rootfs(), "written"), "by the container")
	tmpfs(t, filepath.Join(b.Rootfs(), "tmp"), "")
	bind(t, data, filepath.Join(b.Rootfs(), "tmp", "data"))
	bind(t, data, b.Rootfs()) // a second mount on top of the first

	require.NoError(t, b.Remove())
	requireNothing(t, l)
	requireNoMounts(t, l)
	require.Equal(t, "by the container", content(t, filepath.Join(layers, "upper", "written")))
	requirePrecious(t, data)
}

// TestRemoveUnmountsBelowPlainRootfs: the mount goes, its mount point was made by somebody and stays.
func TestRemoveUnmountsBelowPlainRootfs(t *testing.T) {
	needRoot(t)
	l := newLayout(t)
	b := create(t, l, testID)
	data := precious(t)
	bind(t, data, filepath.Join(b.Rootfs(), "data"))
	require.ErrorIs(t, b.Remove(), ErrNotEmpty)
	requireNoMounts(t, l)
	requirePrecious(t, data)
	require.NoError(t, os.Remove(filepath.Join(b.Rootfs(), "data")))
	require.NoError(t, b.Remove())
	requireNothing(t, l)
}

// TestRemoveKeepsAMountInUse: detached, it would live on unseen, and the next mount of the same layers would write
// beside whoever uses it.
func TestRemoveKeepsAMountInUse(t *testing.T) {
	needRoot(t)
	for name, use := range map[string]func(t *testing.T, rootfs string) (pid int, how string, leave func()){
		"working directory": func(t *testing.T, rootfs string) (int, string, func()) {
			c := sleepIn(t, filepath.Join(rootfs, "etc"), 0)
			return c.pid, "cwd " + filepath.Join(rootfs, "etc"), c.end
		},
		"working directory in a mount namespace of its own": func(t *testing.T, rootfs string) (int, string, func()) {
			c := sleepIn(t, filepath.Join(rootfs, "etc"), unix.CLONE_NEWNS)
			return c.pid, "cwd " + filepath.Join(rootfs, "etc"), c.end
		},
		"working directory in a mount below": func(t *testing.T, rootfs string) (int, string, func()) {
			c := sleepIn(t, filepath.Join(rootfs, "tmp"), 0)
			return c.pid, "cwd " + filepath.Join(rootfs, "tmp"), c.end
		},
		"open file": func(t *testing.T, rootfs string) (int, string, func()) {
			f, err := os.Open(filepath.Join(rootfs, "etc", "precious"))
			require.NoError(t, err)
			return os.Getpid(), fmt.Sprintf("fd %d %s", f.Fd(), f.Name()), func() { f.Close() }
		},
		"deleted file": func(t *testing.T, rootfs string) (int, string, func()) {
			put(t, filepath.Join(rootfs, "gone"), "x")
			f, err := os.Open(filepath.Join(rootfs, "gone"))
			require.NoError(t, err)
			require.NoError(t, os.Remove(f.Name()))
			return os.Getpid(), fmt.Sprintf("fd %d %s", f.Fd(), f.Name()), func() { f.Close() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			b := create(t, l, testID)
			fill(t, b)
			upper := overlay(t, b.Rootfs())
			put(t, filepath.Join(b.Rootfs(), "etc", "precious"), "x")
			tmpfs(t, filepath.Join(b.Rootfs(), "tmp"), "")
			pid, how, leave := use(t, b.Rootfs())
			defer leave()
			before := names(t, b.Path)
			for range 2 {
				err := b.Remove()
				require.ErrorIs(t, err, ErrInUse)
				require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
				require.ErrorContains(t, err, b.Rootfs())
				require.ErrorContains(t, err, fmt.Sprintf("process %d (%s)", pid, how))
				require.Equal(t, before, names(t, b.Path))
				require.Equal(t, "x", content(t, filepath.Join(b.Rootfs(), "etc", "precious")), "it is still mounted")
			}
			leave()
			require.NoError(t, b.Remove())
			requireNothing(t, l)
			requireNoMounts(t, l)
			require.Equal(t, "x", content(t, filepath.Join(upper, "etc", "precious")))
		})
	}
}

// TestRemoveOfWhatIsMountedElsewhereToo: a directory of the host that was bound is used by everybody, which keeps no
// bundle.
func TestRemoveOfWhatIsMountedElsewhereToo(t *testing.T) {
	needRoot(t)
	l := newLayout(t)
	b := create(t, l, testID)
	data := precious(t)
	bind(t, data, b.Rootfs())
	sleepIn(t, data, unix.CLONE_NEWNS)
	require.NoError(t, b.Remove())
	requireNothing(t, l)
	requirePrecious(t, data)
}

// overlay mounts one, and returns its upper directory.
func overlay(t testing.TB, target string) (upper string) {
	t.Helper()
	layers := t.TempDir()
	for _, dir := range []string{"lower", "upper", "work"} {
		require.NoError(t, os.Mkdir(filepath.Join(layers, dir), 0o755))
	}
	mountOn(t, "overlay", target, "overlay", 0,
		fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", layers))
	return filepath.Join(layers, "upper")
}

type child struct {
	pid int
	end func() // once or more
}

// sleepIn starts a process in a directory, in new namespaces as the flags say.
func sleepIn(t testing.TB, dir string, unshare uintptr) child {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Unshareflags: unshare, Pdeathsig: unix.SIGKILL}
	require.NoError(t, cmd.Start())
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	return child{cmd.Process.Pid, end}
}

// volume is a directory of the host with something mounted in it, as a storage driver shares it with its peers.
func volume(t testing.TB) (path, sub string) {
	t.Helper()
	path = t.TempDir()
	tmpfs(t, path, "")
	require.NoError(t, unix.Mount("", path, "", unix.MS_SHARED, ""))
	sub = filepath.Join(path, "sub")
	tmpfs(t, sub, "")
	put(t, filepath.Join(sub, "precious"), "x")
	return path, sub
}

// TestRemoveLeavesPeersMounted: what the host has mounted in a volume that it shares stays, when the volume was mounted
// below the rootfs.
func TestRemoveLeavesPeersMounted(t *testing.T) {
	needRoot(t)
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("rootfs shared: %t", shared), func(t *testing.T) {
			l := newLayout(t)
			b := create(t, l, testID)
			path, sub := volume(t)
			overlay(t, b.Rootfs())
			if shared {
				require.NoError(t, unix.Mount("", b.Rootfs(), "", unix.MS_SHARED, ""))
			}
			mountOn(t, path, filepath.Join(b.Rootfs(), "data"), "", unix.MS_BIND|unix.MS_REC, "")
			require.Equal(t, "x", content(t, filepath.Join(b.Rootfs(), "data", "sub", "precious")))
			require.NoError(t, b.Remove())
			requireNothing(t, l)
			requireNoMounts(t, l)
			require.Equal(t, "x", content(t, filepath.Join(sub, "precious")), "the host's mount is gone")
		})
	}
}

// TestIsolate: then other programs that unmount a rootfs, as `shim delete` does, unmount nothing of the host's either.
func TestIsolate(t *testing.T) {
	needRoot(t)
	for name, mounted := range map[string]bool{"mounted": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			b := create(t, l, testID)
			require.NoError(t, b.Isolate(), "nothing is mounted")
			path, sub := volume(t)
			if mounted {
				overlay(t, b.Rootfs())
			}
			data := filepath.Join(b.Rootfs(), "data")
			mountOn(t, path, data, "", unix.MS_BIND|unix.MS_REC, "")
			require.NoError(t, b.Isolate())
			require.NoError(t, unix.Unmount(filepath.Join(data, "sub"), 0))
			require.NoError(t, unix.Unmount(data, 0))
			require.Equal(t, "x", content(t, filepath.Join(sub, "precious")), "the host's mount is gone")
		})
	}
	l := newLayout(t)
	b := create(t, l, testID)
	require.NoError(t, os.RemoveAll(b.Path))
	require.NoError(t, b.Isolate(), "a bundle that is gone")
}

// TestRemoveUnmountsNothingThroughALink: a mount on top of another hides it, and its own files may be links in the way
// to what is hidden.
func TestRemoveUnmountsNothingThroughALink(t *testing.T) {
	needRoot(t)
	l := newLayout(t)
	b := create(t, l, testID)
	host := t.TempDir()
	tmpfs(t, filepath.Join(host, "m"), "")
	put(t, filepath.Join(host, "m", "precious"), "x")
	tmpfs(t, b.Rootfs(), "")
	tmpfs(t, filepath.Join(b.Rootfs(), "tmp", "m"), "")
	tmpfs(t, b.Rootfs(), "")
	require.NoError(t, os.Symlink(host, filepath.Join(b.Rootfs(), "tmp")))

	require.NoError(t, b.Remove())
	requireNothing(t, l)
	requireNoMounts(t, l)
	require.Equal(t, "x", content(t, filepath.Join(host, "m", "precious")), "the host's mount is gone")
}

// TestRemoveRefusesMountsElsewhere: nothing outside rootfs is ours to unmount, or to empty.
func TestRemoveRefusesMountsElsewhere(t *testing.T) {
	needRoot(t)
	for name, at := range map[string]func(b *Bundle) string{
		"in the bundle":   func(b *Bundle) string { return b.file("m") },
		"deeper":          func(b *Bundle) string { return b.file(filepath.Join("a", "b", "m")) },
		"the bundle":      func(b *Bundle) string { return b.Path },
		"in the work dir": func(b *Bundle) string { return filepath.Join(b.work.path, "a", "m") },
		"the work dir":    func(b *Bundle) string { return b.work.path },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			b := create(t, l, testID)
			fill(t, b)
			data := precious(t)
			put(t, filepath.Join(data, "rootfs", "mine"), "x")
			bind(t, data, at(b))
			err := b.Remove()
			require.ErrorIs(t, err, ErrMounted)
			require.True(t, errdefs.IsFailedPrecondition(err))
			require.ErrorContains(t, err, at(b))
			require.Equal(t, "x", content(t, filepath.Join(at(b), "precious")))
			require.DirExists(t, b.Rootfs(), "nothing was done")
			require.DirExists(t, b.work.path)

			require.NoError(t, unix.Unmount(at(b), 0))
			require.NoError(t, b.Remove())
			requireNothing(t, l)
			requirePrecious(t, data)
		})
	}
}

// TestRemoveGoesOnWhereItFailed: the bundle has left its place, but not all of it can be removed yet.
func TestRemoveGoesOnWhereItFailed(t *testing.T) {
	needRoot(t)
	l := newLayout(t)
	b := create(t, l, testID)
	fill(t, b)
	require.NoError(t, os.Remove(b.Rootfs()))
	require.NoError(t, b.dir.moveAway())
	data := precious(t)
	target := filepath.Join(b.dir.hidden, "m")
	bind(t, data, target)

	require.ErrorIs(t, b.Remove(), ErrMounted)
	require.NoDirExists(t, b.work.path, "one error does not keep the other directory")
	require.Equal(t, "x", content(t, filepath.Join(target, "precious")))
	next := create(t, l, testID)

	require.NoError(t, unix.Unmount(target, 0))
	require.NoError(t, b.Remove())
	require.Equal(t, []string{testID}, names(t, filepath.Dir(next.Path)))
	require.DirExists(t, next.work.path, "the successor keeps what is its own")
	require.NoError(t, next.Remove())
	requireNothing(t, l)
}

func TestRemoveRefusesMountedFile(t *testing.T) {
	needRoot(t)
	l := newLayout(t)
	b := create(t, l, testID)
	source := filepath.Join(t.TempDir(), "precious")
	put(t, source, "x")
	put(t, b.file("hosts"), "")
	require.NoError(t, unix.Mount(source, b.file("hosts"), "", unix.MS_BIND, ""))
	defer unix.Unmount(b.file("hosts"), unix.MNT_DETACH)
	err := b.Remove()
	require.ErrorIs(t, err, ErrMounted)
	require.ErrorContains(t, err, b.file("hosts"))
	require.Equal(t, "x", content(t, source))
}

func TestSweepNeverCrossesAMount(t *testing.T) {
	needRoot(t)
	for _, name := range []string{".gone", newLeftoverName("gone"), "gone"} {
		for _, side := range []string{"state", "root"} {
			t.Run(side+" "+name, func(t *testing.T) {
				dir := t.TempDir()
				l := layoutIn(t, dir)
				if name == "gone" && side == "state" {
					return // that is a bundle
				}
				path := filepath.Join(dir, side, testNS, name)
				data := precious(t)
				bind(t, data, filepath.Join(path, "a", "m"))
				put(t, filepath.Join(l.Root, testNS, "other", "file"), "x")
				swept, err := l.Sweep(nil)
				require.ErrorIs(t, err, ErrMounted)
				require.Equal(t, []string{filepath.Join(l.Root, testNS, "other")}, swept, "the others are swept")
				require.Equal(t, "x", content(t, filepath.Join(path, "a", "m", "precious")))

				require.NoError(t, unix.Unmount(filepath.Join(path, "a", "m"), 0))
				_, err = l.Sweep(nil)
				require.NoError(t, err)
				requireNothing(t, l)
			})
		}
	}
}

// TestSweepFollowsNoLink: neither a link of a leftover's name, nor one in the place of a namespace, leads to the rootfs
// of a living container.
func TestSweepFollowsNoLink(t *testing.T) {
	needRoot(t)
	l := newLayout(t)
	live := create(t, l, testID)
	data := precious(t)
	bind(t, data, live.Rootfs())
	links := []string{
		filepath.Join(l.State, testNS, newLeftoverName("gone")),
		filepath.Join(l.State, testNS, ".gone"),
		filepath.Join(l.Root, testNS, newLeftoverName("gone")),
		filepath.Join(l.State, "other", newLeftoverName("gone")),
	}
	for _, link := range links {
		require.NoError(t, os.MkdirAll(filepath.Dir(link), 0o711))
		require.NoError(t, os.Symlink(live.Path, link))
	}
	namespace := filepath.Join(l.State, "linked")
	require.NoError(t, os.Symlink(filepath.Dir(live.Path), namespace))

	swept, err := l.Sweep(func(ns, id string) bool { return ns == testNS && id == testID })
	require.NoError(t, err)
	require.Empty(t, swept)
	require.Equal(t, "x", content(t, filepath.Join(live.Rootfs(), "precious")),
		"the rootfs of a living container is unmounted")
	for _, link := range append(links, namespace) {
		_, err := os.Readlink(link)
		require.NoError(t, err, "what is not ours stays")
	}
}

// TestRemoveTreeStopsAtAMount: one that was made after the check, from the same file system, where the device number
// tells nothing.
func TestRemoveTreeStopsAtAMount(t *testing.T) {
	needRoot(t)
	top, data := t.TempDir(), t.TempDir()
	put(t, filepath.Join(data, "precious"), "x")
	put(t, filepath.Join(top, "tree", "file"), "x")
	target := filepath.Join(top, "tree", "a", "m")
	bind(t, data, target)
	err := removeTree(filepath.Join(top, "tree"))
	require.ErrorIs(t, err, ErrMounted)
	require.ErrorContains(t, err, target)
	requirePrecious(t, data)
	require.NoFileExists(t, filepath.Join(top, "tree", "file"), "the rest goes")
	require.NoError(t, unix.Unmount(target, 0))
	require.NoError(t, removeTree(filepath.Join(top, "tree")))
	require.Empty(t, names(t, top))
	require.NoError(t, removeTree(filepath.Join(top, "tree")), "nothing there is no error")
	require.NoError(t, removeTree(filepath.Join(top, "no", "tree")))
}

// TestOpenSameDevice is the way of kernels without openat2.
func TestOpenSameDevice(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	tmpfs(t, filepath.Join(top, "m"), "")
	require.NoError(t, os.Mkdir(filepath.Join(top, "dir"), 0o700))
	require.NoError(t, os.Symlink("dir", filepath.Join(top, "link")))
	parent, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(parent)
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := openSameDevice(parent, "dir", flags)
	require.NoError(t, err)
	unix.Close(fd)
	_, err = openSameDevice(parent, "m", flags)
	require.Equal(t, unix.EXDEV, err)
	_, err = openSameDevice(parent, "link", flags)
	require.Contains(t, []error{unix.ENOTDIR, unix.ELOOP}, err)
	_, err = openSameDevice(parent, "none", flags)
	require.Equal(t, unix.ENOENT, err)
}

// TestMountInsideBothWays: by statx and by the mount table, the answers are the same.
func TestMountInsideBothWays(t *testing.T) {
	needRoot(t)
	resolved := t.TempDir()
	top := filepath.Join(t.TempDir(), "via")
	require.NoError(t, os.Symlink(resolved, top)) // as /var/run is one
	require.NoError(t, os.MkdirAll(filepath.Join(top, "b", "rootfs"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(top, "b", "rootfs2"), 0o755))
	dir := filepath.Join(top, "b")
	check := func(path, except, want string) {
		t.Helper()
		got, err := mountInside(path, except)
		require.NoError(t, err)
		require.Equal(t, want, got)
		got, err = mountInTable(path, except)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	rootfs := filepath.Join(dir, "rootfs")
	check(dir, rootfs, "")
	check(filepath.Join(top, "none"), "", "")
	check(filepath.Join(top, "none", "none"), "", "")
	tmpfs(t, filepath.Join(resolved, "b", "rootfs"), "")
	check(dir, rootfs, "")
	check(dir, "", rootfs)
	tmpfs(t, filepath.Join(resolved, "b", "rootfs", "odd \\ name"), "")
	check(dir, rootfs, "")
	tmpfs(t, filepath.Join(resolved, "b", "rootfs2"), "")
	check(dir, rootfs, rootfs+"2")
	require.NoError(t, os.Symlink(dir, filepath.Join(resolved, "link")))
	check(filepath.Join(top, "link"), "", "")
}
