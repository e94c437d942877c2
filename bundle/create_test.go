// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	// Without Init: a namespace's parents are made as needed.
	l := Layout{State: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root")}
	b, err := l.Create(testNS, testID, CreateOptions{Spec: []byte(`{"a":1}`)})
	require.NoError(t, err)

	work := filepath.Join(l.Root, testNS, testID)
	require.Equal(t, filepath.Join(l.State, testNS, testID), b.Path)
	require.Equal(t, []string{"config.json", "rootfs", "work"}, names(t, b.Path))
	require.Equal(t, `{"a":1}`, content(t, b.file("config.json")))
	target, err := os.Readlink(b.file("work"))
	require.NoError(t, err)
	require.Equal(t, work, target)
	require.Empty(t, names(t, work))
	requireMode(t, b.Path, os.ModeDir|0o700)
	requireMode(t, b.Rootfs(), os.ModeDir|0o711)
	requireMode(t, work, os.ModeDir|0o711)
	requireMode(t, filepath.Join(l.State, testNS), os.ModeDir|0o711)
	requireMode(t, filepath.Join(l.Root, testNS), os.ModeDir|0o711)
	requireMode(t, b.file("config.json"), 0o644)

	require.NoError(t, b.Remove())
	requireNothing(t, l)
}

func TestCreateSpecNilAndEmpty(t *testing.T) {
	l := newLayout(t)
	b, err := l.Create(testNS, testID, CreateOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{"rootfs", "work"}, names(t, b.Path))

	b, err = l.Create(testNS, "other", CreateOptions{Spec: []byte{}})
	require.NoError(t, err)
	require.Equal(t, []string{"config.json", "rootfs", "work"}, names(t, b.Path))
}

func TestCreateSameIDInTwoNamespaces(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	other, err := l.Create("other", testID, CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, b.Remove())
	requireNothing(t, l)
	require.Equal(t, []string{"rootfs", "work"}, names(t, other.Path))
	require.DirExists(t, other.work.path)
}

func TestCreateExisting(t *testing.T) {
	for name, occupy := range map[string]func(t *testing.T, path string){
		"bundle":    func(t *testing.T, path string) { put(t, filepath.Join(path, "keep"), "x") },
		"empty dir": func(t *testing.T, path string) { require.NoError(t, os.MkdirAll(path, 0o700)) },
		"file":      func(t *testing.T, path string) { put(t, path, "x") },
		"dangling link": func(t *testing.T, path string) {
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			require.NoError(t, os.Symlink("nowhere", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			path := filepath.Join(l.State, testNS, testID)
			occupy(t, path)
			before, err := os.Lstat(path)
			require.NoError(t, err)
			put(t, filepath.Join(l.Root, testNS, testID, "keep"), "x")

			_, err = l.Create(testNS, testID, CreateOptions{Spec: []byte("{}")})
			require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
			require.ErrorContains(t, err, path)

			after, err := os.Lstat(path)
			require.NoError(t, err)
			require.True(t, os.SameFile(before, after))
			require.Equal(t, "x", content(t, filepath.Join(l.Root, testNS, testID, "keep")),
				"the work directory belongs to what is there")
			require.Equal(t, []string{testID}, names(t, filepath.Join(l.State, testNS)))
		})
	}
}

func TestCreateReplacesLeftoverWorkDir(t *testing.T) {
	elsewhere := t.TempDir()
	put(t, filepath.Join(elsewhere, "keep"), "x")
	for name, leave := range map[string]func(t *testing.T, path string){
		"full": func(t *testing.T, path string) {
			put(t, filepath.Join(path, "a", "b"), "old")
			require.NoError(t, os.Symlink(elsewhere, filepath.Join(path, "link")))
		},
		"empty": func(t *testing.T, path string) { require.NoError(t, os.MkdirAll(path, 0o700)) },
		"file":  func(t *testing.T, path string) { put(t, path, "old") },
		"link": func(t *testing.T, path string) {
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			require.NoError(t, os.Symlink(elsewhere, path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			work := filepath.Join(l.Root, testNS, testID)
			leave(t, work)
			create(t, l, testID)
			requireMode(t, work, os.ModeDir|0o711)
			require.Empty(t, names(t, work))
			require.Equal(t, []string{testID}, names(t, filepath.Dir(work)))
			require.Equal(t, "x", content(t, filepath.Join(elsewhere, "keep")))
		})
	}
}

// TestCreateRefusesLinkedNamespace: List does not look behind a link, so that a bundle made there would be lost at the
// next boot.
func TestCreateRefusesLinkedNamespace(t *testing.T) {
	for _, side := range []string{"state", "root"} {
		t.Run(side, func(t *testing.T) {
			l := newLayout(t)
			elsewhere := t.TempDir()
			top := map[string]string{"state": l.State, "root": l.Root}[side]
			require.NoError(t, os.Symlink(elsewhere, filepath.Join(top, testNS)))
			_, err := l.Create(testNS, testID, CreateOptions{})
			require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
			requireNothing(t, l)
			require.Empty(t, names(t, elsewhere))
		})
	}
}

func TestCreateUndoesWhenAFileStandsInTheWay(t *testing.T) {
	l := newLayout(t)
	put(t, filepath.Join(l.Root, testNS), "x")
	_, err := l.Create(testNS, testID, CreateOptions{})
	require.Error(t, err)
	require.Empty(t, names(t, filepath.Join(l.State, testNS)))
	require.Equal(t, "x", content(t, filepath.Join(l.Root, testNS)))
}

func TestUndoStackRunsAllInReverse(t *testing.T) {
	var order []int
	var undo undoStack
	for i := range 3 {
		undo.push(func() error {
			order = append(order, i)
			if i > 0 {
				return os.ErrInvalid
			}
			return nil
		})
	}
	require.ErrorIs(t, undo.run(), os.ErrInvalid)
	require.Equal(t, []int{2, 1, 0}, order)
}

// TestReplace: `shim delete` needs a directory to run in, whatever has removed the bundle's.
func TestReplace(t *testing.T) {
	for name, gone := range map[string]func(b *Bundle) string{
		"bundle":    func(b *Bundle) string { return b.Path },
		"namespace": func(b *Bundle) string { return filepath.Dir(b.Path) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			b := create(t, l, testID)
			fill(t, b)
			made, err := b.Replace()
			require.NoError(t, err)
			require.False(t, made, "it is there")
			require.Equal(t, "x", content(t, b.file(bootstrapFile)))

			require.NoError(t, os.RemoveAll(gone(b)))
			made, err = b.Replace()
			require.NoError(t, err)
			require.True(t, made)
			requireMode(t, b.Path, os.ModeDir|0o700)
			require.Empty(t, names(t, b.Path))
			require.NoError(t, b.Remove())
			requireNothing(t, l)
			_, err = b.Replace()
			require.True(t, errdefs.IsFailedPrecondition(err), "what is removed may be another instance's: %v", err)
			requireNothing(t, l)
		})
	}
}

func TestReplaceRefusesWhatIsNoDirectory(t *testing.T) {
	l := newLayout(t)
	elsewhere := t.TempDir()
	b := create(t, l, testID)
	require.NoError(t, os.RemoveAll(b.Path))
	require.NoError(t, os.Symlink(elsewhere, b.Path))
	_, err := b.Replace()
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	require.Empty(t, names(t, elsewhere))
	_, err = (&Bundle{Path: b.Path}).Replace()
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
}

// TestWriteRuncOptions: as runc's shim writes and reads them.
func TestWriteRuncOptions(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	want := &options.Options{Root: "/run/other", SystemdCgroup: true}
	require.NoError(t, b.WriteRuncOptions(want))
	require.NoFileExists(t, b.file(runtimeFile), "the shim's default")
	want.BinaryName = "crun"
	require.NoError(t, b.WriteRuncOptions(want))
	require.Equal(t, "crun", content(t, b.file(runtimeFile)))
	require.True(t, b.NamesRunc("crun"))
	require.False(t, b.NamesRunc("cr"))
	got := &options.Options{}
	require.NoError(t, json.Unmarshal([]byte(content(t, b.file(optionsFile))), got))
	require.True(t, proto.Equal(want, got), "%v", got)
}
