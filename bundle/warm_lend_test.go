// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package bundle

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// started is the directory of a warm shim whose shim has started.
func started(t testing.TB, l Layout) *Warm {
	t.Helper()
	w := createWarm(t, l)
	for _, name := range []string{logFile, addressFile, bootstrapFile, "of-the-shim"} {
		put(t, filepath.Join(w.Path, name), "the shim's")
	}
	require.NoError(t, os.Symlink("/run/s", filepath.Join(w.Path, socketDirLink)))
	files, err := w.Names()
	require.NoError(t, err)
	require.NoError(t, w.WriteRecord(&WarmRecord{Namespace: testNS, Files: files}))
	return w
}

// waits requires that a directory is as it was when the shim had started.
func waits(t testing.TB, w *Warm) {
	t.Helper()
	require.ElementsMatch(t, []string{configFile, logFile, addressFile, bootstrapFile, socketDirLink, "of-the-shim",
		warmFile}, names(t, w.Path))
	require.Equal(t, warmSpec, content(t, filepath.Join(w.Path, configFile)))
	requireMode(t, w.Path, os.ModeDir|0o700)
	info, err := os.Stat(w.Path)
	require.NoError(t, err)
	require.EqualValues(t, os.Getegid(), gidOf(info))
	require.Equal(t, "the shim's", content(t, w.LogPath()))
	require.Equal(t, filepath.Join(w.Path, logFile), w.LogPath())
}

func assembleOptions(gid uint32) AssembleOptions {
	return AssembleOptions{
		CreateOptions: CreateOptions{Spec: []byte(`{"ociVersion":"1"}`), GID: gid}, Binary: "/bin/shim",
		Record: &Record{Runtime: "r", Warm: "w"},
	}
}

func lend(t testing.TB, w *Warm, id string) *Bundle {
	t.Helper()
	b, err := w.Assemble(testNS, id, assembleOptions(0))
	require.NoError(t, err)
	require.NoDirExists(t, b.Path, "it does not appear before it is whole")
	require.NoError(t, w.Lend(b))
	return b
}

// TestLend: the directory becomes one bundle after the other, each with all that a bundle has, and is what it was in
// between.
func TestLend(t *testing.T) {
	l := newLayout(t)
	w := started(t, l)
	inode, err := os.Stat(w.Path)
	require.NoError(t, err)
	for _, id := range []string{testID, "other", testID} {
		put(t, filepath.Join(l.Root, testNS, id, "of-an-earlier-one"), "x")
		b := lend(t, w, id)
		require.NoDirExists(t, w.Path)
		now, err := os.Stat(b.Path)
		require.NoError(t, err)
		require.True(t, os.SameFile(inode, now))
		require.Equal(t, filepath.Join(l.State, testNS, id), b.Path)
		require.Equal(t, `{"ociVersion":"1"}`, content(t, b.file(configFile)))
		requireMode(t, b.file(configFile), 0o644)
		requireMode(t, b.Rootfs(), os.ModeDir|0o711)
		requireMode(t, b.file(shimBinaryFile), 0o600)
		requireMode(t, b.file(recordFile), 0o600)
		binary, err := b.ShimBinary()
		require.NoError(t, err)
		require.Equal(t, "/bin/shim", binary)
		r, err := b.ReadRecord()
		require.NoError(t, err)
		require.Equal(t, &Record{Version: RecordVersion, Runtime: "r", Warm: "w"}, r)
		work, err := os.Readlink(b.file(workLink))
		require.NoError(t, err)
		require.Equal(t, filepath.Join(l.Root, testNS, id), work)
		require.Empty(t, names(t, work))
		require.Equal(t, b.LogPath(), w.LogPath())
		opened, err := l.Open(testNS, id)
		require.NoError(t, err)
		require.True(t, opened.Recognized())

		told, err := opened.LentID()
		require.NoError(t, err)
		require.Equal(t, w.ID, told)
		again, err := l.Lent(opened, w.ID)
		require.NoError(t, err)
		require.Equal(t, b.LogPath(), again.LogPath())
		require.Equal(t, w.Path, again.Path)
		rec, err := again.ReadRecord()
		require.NoError(t, err)
		require.Contains(t, rec.Files, "of-the-shim")

		put(t, b.file(initPidFile), "1")
		put(t, filepath.Join(b.Path, "dir", "deep", "file"), "x")
		require.NoError(t, b.WriteRecord(r))
		require.NoError(t, b.Return(w))
		require.NoError(t, b.Return(w), "again")
		require.NoDirExists(t, b.Path)
		require.NoError(t, w.Empty())
		require.NoError(t, w.Empty(), "again")
		waits(t, w)
		require.DirExists(t, work)
		require.NoError(t, b.Remove())
		require.NoDirExists(t, work)
		waits(t, w)
		requireNothing(t, l)
	}
	require.NoError(t, w.Remove())
}

// TestLendModes: under a user namespace the bundle is open to its root group, and the directory is private again after
// it.
func TestLendModes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: changes the group of a directory")
	}
	l := newLayout(t)
	w := started(t, l)
	b, err := w.Assemble(testNS, testID, assembleOptions(12345))
	require.NoError(t, err)
	require.NoError(t, w.Lend(b))
	requireMode(t, b.Path, os.ModeDir|0o710)
	info, err := os.Stat(b.Path)
	require.NoError(t, err)
	require.EqualValues(t, 12345, gidOf(info))
	require.NoError(t, b.Return(w))
	require.NoError(t, w.Empty())
	waits(t, w)
}

// TestLendToATakenPlace: nothing is replaced, whatever it is, and the directory can be lent elsewhere.
func TestLendToATakenPlace(t *testing.T) {
	for name, take := range map[string]func(t *testing.T, path string){
		"a bundle":         func(t *testing.T, path string) { put(t, filepath.Join(path, configFile), "x") },
		"an empty one":     func(t *testing.T, path string) { require.NoError(t, os.MkdirAll(path, 0o700)) },
		"a file":           func(t *testing.T, path string) { put(t, path, "x") },
		"a link":           func(t *testing.T, path string) { require.NoError(t, os.Symlink(t.TempDir(), path)) },
		"a link to itself": func(t *testing.T, path string) { require.NoError(t, os.Symlink(path, path)) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			w := started(t, l)
			b, err := w.Assemble(testNS, testID, assembleOptions(0))
			require.NoError(t, err)
			take(t, b.Path)
			before, err := os.Lstat(b.Path)
			require.NoError(t, err)
			err = w.Lend(b)
			require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
			after, err := os.Lstat(b.Path)
			require.NoError(t, err)
			require.True(t, os.SameFile(before, after))
			waits(t, w)
			require.Empty(t, names(t, filepath.Join(l.Root, testNS)))
			require.NoError(t, os.RemoveAll(b.Path))
			lend(t, w, testID)
		})
	}
}

// TestAssembleFails: nothing is left of it, and the directory waits.
func TestAssembleFails(t *testing.T) {
	l := newLayout(t)
	w := started(t, l)
	bad := assembleOptions(0)
	bad.Binary = "two\nlines"
	for name, f := range map[string]func() error{
		"binary": func() error { _, err := w.Assemble(testNS, testID, bad); return err },
		"id":     func() error { _, err := w.Assemble(testNS, "../x", assembleOptions(0)); return err },
		"work directory": func() error {
			put(t, filepath.Join(l.Root, "work-is-a-file"), "x")
			_, err := w.Assemble("work-is-a-file", testID, assembleOptions(0))
			return err
		},
		"namespace": func() error {
			put(t, filepath.Join(l.State, "file"), "x")
			_, err := w.Assemble("file", testID, assembleOptions(0))
			return err
		},
	} {
		require.Error(t, f(), name)
		waits(t, w)
		require.Empty(t, names(t, filepath.Join(l.Root, testNS)), name)
	}
	require.NoError(t, os.RemoveAll(w.Path))
	_, err := w.Assemble(testNS, testID, assembleOptions(0))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestReturnNotPastARootfs: what is in a rootfs keeps the bundle in its place, whole.
func TestReturnNotPastARootfs(t *testing.T) {
	l := newLayout(t)
	w := started(t, l)
	b := lend(t, w, testID)
	put(t, filepath.Join(b.Rootfs(), "precious"), "x")
	before := names(t, b.Path)
	require.ErrorIs(t, b.Return(w), ErrNotEmpty)
	require.Equal(t, before, names(t, b.Path))
	require.NoDirExists(t, w.Path)
	require.NoError(t, os.Remove(filepath.Join(b.Rootfs(), "precious")))
	require.NoError(t, b.Return(w))
	put(t, filepath.Join(w.Path, rootfsDir, "precious"), "x") // as after a crash that nobody can think of
	require.ErrorIs(t, w.Empty(), ErrNotEmpty)
	require.ErrorIs(t, w.Remove(), ErrNotEmpty)
	require.FileExists(t, filepath.Join(w.Path, rootfsDir, "precious"))
	require.FileExists(t, filepath.Join(w.Path, warmFile))
	require.NoError(t, os.Remove(filepath.Join(w.Path, rootfsDir, "precious")))
	require.NoError(t, w.Empty())
	waits(t, w)
}

// TestReturnOfWhatIsGone: the bundle was removed by another hand, or something is where the directory waits.
func TestReturnOfWhatIsGone(t *testing.T) {
	l := newLayout(t)
	w := started(t, l)
	b := lend(t, w, testID)
	require.NoError(t, os.Mkdir(w.Path, 0o700))
	require.Error(t, b.Return(w))
	require.DirExists(t, b.Path)
	require.NoError(t, os.Remove(w.Path))
	require.NoError(t, os.RemoveAll(b.Path))
	err := b.Return(w)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	require.NoError(t, b.Remove())
	requireNothing(t, l)
}

// TestRemoveOfALentDirectory: with the bundle all goes, and nothing of a bundle goes with the handle of the warm shim.
func TestRemoveOfALentDirectory(t *testing.T) {
	l := newLayout(t)
	w := started(t, l)
	b := lend(t, w, testID)
	require.NoError(t, w.Remove())
	require.DirExists(t, b.Path)
	_, err := create(t, l, "another").LentID()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	_, err = l.Lent(create(t, l, "other"), w.ID)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	for _, id := range []string{"", "x", "_/../x", testID} {
		_, err = l.Lent(b, id)
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", id, err)
	}
	require.NoError(t, b.Remove())
	require.NoDirExists(t, b.Path)
	require.Empty(t, names(t, filepath.Join(l.Root, testNS, testID)))
}

// TestRenameOver stands in where there is no rename that replaces nothing.
func TestRenameOver(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	put(t, filepath.Join(from, "file"), "x")
	put(t, filepath.Join(to, "file"), "y")
	require.ErrorIs(t, renameOver(from, to), os.ErrExist)
	require.Equal(t, "y", content(t, filepath.Join(to, "file")))
	require.NoError(t, os.RemoveAll(to))
	require.NoError(t, renameOver(from, to))
	require.Equal(t, "x", content(t, filepath.Join(to, "file")))
	require.ErrorIs(t, renameOver(from, filepath.Join(dir, "other")), os.ErrNotExist)
	require.NoDirExists(t, filepath.Join(dir, "other"))
}

func gidOf(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Gid }
