// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// FuzzRemove builds a bundle and a work directory from names that nobody foresaw, with links out of them in all places.
func FuzzRemove(f *testing.F) {
	f.Add("l:rootfs")
	f.Add("f:rootfs")
	f.Add("f:rootfs/data\nl:rootfs/link")
	f.Add("l:work\nl:a/b/c\nf:a/b/-rf\nd:a/ \nl:config.json\nd:...")
	f.Add("w:x/y\nm:x/link\nm:link\nw:\xff\xfe\nf:\x01")
	f.Fuzz(func(t *testing.T, tree string) {
		l := newLayout(t)
		elsewhere := t.TempDir()
		precious := filepath.Join(elsewhere, "precious")
		put(t, precious, "x")
		b := create(t, l, testID)
		for _, line := range strings.Split(tree, "\n") {
			kind, name, _ := strings.Cut(line, ":")
			plant(b, kind, name, elsewhere)
		}
		kept := heldByRootfs(b)

		err := b.Remove()
		require.Equal(t, "x", content(t, precious))
		require.Equal(t, []string{"precious"}, names(t, elsewhere))
		if err != nil {
			require.NotEmpty(t, kept)
			require.Contains(t, names(t, b.Path), configFile)
			require.Equal(t, kept, heldByRootfs(b), "what is in rootfs stays")
			return
		}
		require.Empty(t, kept)
		requireNothing(t, l)
	})
}

// plant puts a file (f), a directory (d) or a link to elsewhere (l) into the bundle, or a file (w) or a link (m) into
// its work directory. What cannot be is left out.
func plant(b *Bundle, kind, name, elsewhere string) {
	if !filepath.IsLocal(name) || name == configFile && kind != "l" {
		return
	}
	top := b.Path
	if kind == "w" || kind == "m" {
		top = b.work.path
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		return
	}
	defer root.Close()
	if filepath.Dir(name) != "." {
		_ = root.MkdirAll(filepath.Dir(name), 0o755)
	}
	switch kind {
	case "f", "w":
		_ = root.Remove(name)
		_ = root.WriteFile(name, nil, 0o600)
	case "d":
		_ = root.MkdirAll(name, 0o700)
	case "l", "m":
		_ = root.Remove(name)
		_ = root.Symlink(elsewhere, name)
	}
}

// heldByRootfs lists what keeps a bundle: the names in rootfs, or rootfs itself if it is a file.
func heldByRootfs(b *Bundle) []string {
	info, err := os.Lstat(b.Rootfs())
	if err != nil || info.Mode().Type() == os.ModeSymlink {
		return nil
	}
	if !info.IsDir() {
		return []string{b.Rootfs()}
	}
	entries, _ := os.ReadDir(b.Rootfs())
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// FuzzShimFiles: what a shim, or whoever else writes into a bundle, has in its small files is refused or can be used;
// what is read of an exit can be recorded.
func FuzzShimFiles(f *testing.F) {
	for _, seed := range []string{
		`{"Timestamp":"2026-05-01T12:00:00Z","Pid":7,"Status":137}`,
		`{"Timestamp":"0000-01-01T00:00:00+23:59","Pid":7}`,
		`{"Timestamp":"9999-12-31T23:59:59-23:59","Pid":7}`, `{"Pid":-1}`, `{"root":"/run/runc","binary_name":"crun"}`,
		"4194304", " 7\n", "-7", "/bin/shim", "../x", "pod-1", "",
	} {
		f.Add([]byte(seed))
	}
	b := create(f, newLayout(f), testID)
	files := []string{exitFile, optionsFile, initPidFile, shimPidFile, shimBinaryFile, sandboxFile, runtimeFile}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range files {
			put(t, b.file(name), string(data))
		}
		if e, err := b.ShimExit(); usable(t, err) {
			require.Positive(t, e.Pid)
			_, err := json.Marshal(e)
			require.NoError(t, err, "it can be recorded")
		}
		if o, err := b.RuncOptions(); usable(t, err) {
			require.NotNil(t, o)
		}
		if pid, _, err := b.InitPid(); usable(t, err) {
			require.Positive(t, pid)
		}
		if pid, err := b.ShimPid(); usable(t, err) {
			require.Positive(t, pid)
		}
		if path, err := b.ShimBinary(); usable(t, err) {
			require.NotEmpty(t, path)
			require.NotContains(t, path, "\x00")
		}
		if id, err := b.Sandbox(); usable(t, err) {
			require.NoError(t, identifiers.Validate(id))
		}
		b.NamesRunc("runc")
	})
}

// usable tells whether a file could be read. If not, the error says whether there is nothing or something foreign.
func usable(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && !errdefs.IsNotFound(err) {
		require.ErrorIs(t, err, ErrForeign)
	}
	return err == nil
}
