// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	testNS = "default"
	testID = "web-1"
)

func newLayout(t testing.TB) Layout {
	t.Helper()
	return layoutIn(t, t.TempDir())
}

func layoutIn(t testing.TB, dir string) Layout {
	t.Helper()
	l := Layout{State: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root")}
	require.NoError(t, l.Init(0o711))
	return l
}

func create(t testing.TB, l Layout, id string) *Bundle {
	t.Helper()
	b, err := l.Create(testNS, id, CreateOptions{Spec: []byte("{}")})
	require.NoError(t, err)
	return b
}

// fill puts in what a shim and a daemon leave in a bundle and in a work directory.
func fill(t testing.TB, b *Bundle) {
	t.Helper()
	for _, name := range []string{logFile, shimBinaryFile, bootstrapFile, recordFile, addressFile, initPidFile,
		exitFile} {
		put(t, b.file(name), "x")
	}
	put(t, filepath.Join(b.work.path, "sub", "deep", "file"), "x")
}

func put(t testing.TB, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

func content(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// requireNothing fails if the namespace holds anything, hidden or not, on either side.
func requireNothing(t testing.TB, l Layout) {
	t.Helper()
	require.Empty(t, names(t, filepath.Join(l.State, testNS)), "left in state")
	require.Empty(t, names(t, filepath.Join(l.Root, testNS)), "left in root")
}

func requireMode(t testing.TB, path string, want fs.FileMode) {
	t.Helper()
	if runtime.GOOS == "windows" {
		return
	}
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, want, info.Mode(), path)
}
