// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package release

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/stretchr/testify/require"
)

// Two builds of one commit, in different directories, by users with different umasks, time zones, languages, Go
// settings and times of the files, give the same bytes.
func TestReleaseIsReproducible(t *testing.T) {
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	sources := checkout(t, root, "a", time.Now())
	first := release(t, sources, "022")
	second := release(t, checkout(t, sources, "some/other/place", time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)), "077",
		"TZ=Asia/Tokyo", "LC_ALL=C.UTF-8", "GOFLAGS=-tags=failpoints", "CGO_ENABLED=1", "GOAMD64=v2")
	require.Equal(t, sums(t, first), sums(t, second))

	check := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = first
	out, err := check.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Len(t, strings.Split(strings.TrimSpace(string(out)), "\n"), 4,
		"a package of each kind, the archive, the bill of materials")

	t.Run("bill of materials", func(t *testing.T) { checkBill(t, first) })
	t.Run("deb", func(t *testing.T) { checkDeb(t, first) })
}

// checkout copies a working tree, with changes that are not committed yet, into a git repository with one commit that
// is the same each time. The files get the time given.
func checkout(t *testing.T, root, name string, when time.Time) string {
	dir := filepath.Join(t.TempDir(), name)
	require.NoError(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		require.NoError(t, err)
		if rel == "bin" || rel == ".git" {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil // a worktree's .git is a file
		}
		to := filepath.Join(dir, rel)
		if e.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		info, err := e.Info()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to, data, info.Mode().Perm()))
		return os.Chtimes(to, when, when)
	}))
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"}, {"add", "-A"},
		{"-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false", "commit", "-q", "-m",
			"all"},
	} {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_DATE=2026-01-02T03:04:05Z",
			"GIT_COMMITTER_DATE=2026-01-02T03:04:05Z")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	return dir
}

func release(t *testing.T, dir, umask string, env ...string) string {
	out := filepath.Join(dir, "bin", "package")
	script := "umask " + umask + "; exec bash hack/package.sh release"
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	return out
}

func sums(t *testing.T, dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	require.NoError(t, err)
	return string(data)
}

// one is the only file that matches.
func one(t *testing.T, dir, pattern string) string {
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	require.NoError(t, err)
	require.Len(t, found, 1, pattern)
	return found[0]
}

func checkBill(t *testing.T, dir string) {
	data, err := os.ReadFile(one(t, dir, "*.cdx.json"))
	require.NoError(t, err)
	var bom cdx.BOM
	require.NoError(t, cdx.NewBOMDecoder(bytes.NewReader(data), cdx.BOMFileFormatJSON).Decode(&bom))
	require.True(t, json.Valid(data))
	require.Equal(t, "2026-01-02T03:04:05Z", bom.Metadata.Timestamp)
	linked := map[string]string{}
	for _, c := range *bom.Components {
		linked[c.Name] = c.Version
	}
	require.Contains(t, bom.Metadata.Component.Version,
		"+containerd"+strings.TrimPrefix(linked["github.com/containerd/containerd/v2"], "v"))
	require.Contains(t, linked, "std")
	require.Contains(t, linked, "google.golang.org/grpc")
	require.NotContains(t, linked, "github.com/stretchr/testify", "only tests need it")
}

// The package holds what the unit's drop-in names, and no file of containerd's own package.
func checkDeb(t *testing.T, dir string) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg-deb")
	}
	deb := one(t, dir, "*.deb")
	root := t.TempDir()
	out, err := exec.Command("dpkg-deb", "-x", deb, root).CombinedOutput()
	require.NoError(t, err, string(out))
	dropin, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/containerd.service.d/50-shimyard.conf"))
	require.NoError(t, err)
	require.Contains(t, string(dropin), "\nExecStart=\nExecStart=/usr/lib/shimyard/containerd\n")
	version, err := exec.Command(filepath.Join(root, "usr/lib/shimyard/containerd"), "--version").CombinedOutput()
	require.NoError(t, err, string(version))
	require.Contains(t, string(version), "+shimyard.")

	for _, theirs := range []string{"usr/bin/containerd", "usr/bin/ctr", "lib",
		"usr/lib/systemd/system/containerd.service", "etc"} {
		require.NoFileExists(t, filepath.Join(root, theirs))
		require.NoDirExists(t, filepath.Join(root, theirs))
	}
	depends, err := exec.Command("dpkg-deb", "-f", deb, "Depends").CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "containerd.io | containerd", strings.TrimSpace(string(depends)))
}
