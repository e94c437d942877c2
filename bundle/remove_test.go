// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestRemoveTwice(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	fill(t, b)
	require.NoError(t, b.Remove())
	requireNothing(t, l)
	require.NoError(t, b.Remove())
	again, err := l.bundle(testNS, testID)
	require.NoError(t, err)
	require.NoError(t, again.Remove(), "nothing there is no error")
}

// TestRemoveLeavesSuccessor: a late second Remove of a handle must not take away what has been created under the same
// id since.
func TestRemoveLeavesSuccessor(t *testing.T) {
	l := newLayout(t)
	old := create(t, l, testID)
	require.NoError(t, old.Remove())
	b := create(t, l, testID)
	fill(t, b)
	require.NoError(t, old.Remove())
	require.Equal(t, "x", content(t, b.file(bootstrapFile)))
	require.DirExists(t, b.work.path)
}

// removalSteps are the durable steps of a removal, in order. A daemon may die after each.
var removalSteps = []struct {
	name string
	do   func(t *testing.T, b *Bundle)
}{
	{"nothing", func(*testing.T, *Bundle) {}},
	{"rootfs removed", func(t *testing.T, b *Bundle) { require.NoError(t, os.Remove(b.Rootfs())) }},
	{"bundle renamed", func(t *testing.T, b *Bundle) { require.NoError(t, b.dir.moveAway()) }},
	{"bundle half removed", func(t *testing.T, b *Bundle) {
		require.NoError(t, os.Remove(filepath.Join(b.dir.hidden, configFile)))
		require.NoError(t, os.Remove(filepath.Join(b.dir.hidden, workLink)))
	}},
	{"bundle removed", func(t *testing.T, b *Bundle) { require.NoError(t, os.RemoveAll(b.dir.hidden)) }},
	{"work renamed", func(t *testing.T, b *Bundle) { require.NoError(t, b.work.moveAway()) }},
	{"work half removed", func(t *testing.T, b *Bundle) {
		require.NoError(t, os.Remove(filepath.Join(b.work.hidden, "sub", "deep", "file")))
	}},
	{"work removed", func(t *testing.T, b *Bundle) { require.NoError(t, os.RemoveAll(b.work.hidden)) }},
}

func eachCutRemoval(t *testing.T, f func(t *testing.T, l Layout, renamed bool)) {
	for i, step := range removalSteps {
		t.Run("cut after "+step.name, func(t *testing.T) {
			l := newLayout(t)
			b := create(t, l, testID)
			fill(t, b)
			for _, s := range removalSteps[:i+1] {
				s.do(t, b)
			}
			f(t, l, b.dir.moved)
		})
	}
}

// TestRemoveAfterCrash: the daemon died in the middle of a removal; the next one lists, sweeps and removes.
func TestRemoveAfterCrash(t *testing.T) {
	eachCutRemoval(t, func(t *testing.T, l Layout, renamed bool) {
		listing, err := l.List()
		require.NoError(t, err)
		require.Empty(t, listing.Unknown)
		require.Equal(t, renamed, len(listing.Bundles) == 0)
		_, err = l.Sweep(nil)
		require.NoError(t, err)
		for _, b := range listing.Bundles {
			require.NoError(t, b.Remove())
		}
		requireNothing(t, l)
	})
}

// TestRemoveAgainAfterCut: the same, without a sweep; what the second removal cannot know of is swept later.
func TestRemoveAgainAfterCut(t *testing.T) {
	eachCutRemoval(t, func(t *testing.T, l Layout, _ bool) {
		b, err := l.bundle(testNS, testID)
		require.NoError(t, err)
		require.NoError(t, b.Remove())
		require.NoDirExists(t, b.Path)
		require.NoDirExists(t, b.work.path)
		_, err = l.Sweep(nil)
		require.NoError(t, err)
		requireNothing(t, l)
	})
}

// TestCreateAfterCutRemoval: a leftover of any kind does not keep the id from being used, nor what follows from being
// removed.
func TestCreateAfterCutRemoval(t *testing.T) {
	eachCutRemoval(t, func(t *testing.T, l Layout, renamed bool) {
		b, err := l.Create(testNS, testID, CreateOptions{Spec: []byte("new")})
		if !renamed {
			require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
			old, err := l.Open(testNS, testID)
			require.NoError(t, err)
			require.NoError(t, old.Remove())
			b, err = l.Create(testNS, testID, CreateOptions{Spec: []byte("new")})
			require.NoError(t, err)
		} else {
			require.NoError(t, err)
		}
		require.Equal(t, []string{configFile, rootfsDir, workLink}, names(t, b.Path))
		require.Empty(t, names(t, b.work.path))

		_, err = l.Sweep(nil)
		require.NoError(t, err)
		require.Equal(t, []string{testID}, names(t, filepath.Dir(b.Path)))
		require.Equal(t, []string{testID}, names(t, filepath.Dir(b.work.path)))
		require.NoError(t, b.Remove())
		requireNothing(t, l)
	})
}

// TestOurLeftoverDoesNotDisturbStock: containerd's own removal renames to ".ID", which fails when that holds something.
func TestOurLeftoverDoesNotDisturbStock(t *testing.T) {
	eachCutRemoval(t, func(t *testing.T, l Layout, renamed bool) {
		if renamed {
			create(t, l, testID)
		}
		for _, top := range []string{l.State, l.Root} {
			hidden := filepath.Join(top, testNS, "."+testID)
			require.NoDirExists(t, hidden)
			require.NoError(t, os.Rename(filepath.Join(top, testNS, testID), hidden))
		}
		swept, err := l.Sweep(nil)
		require.NoError(t, err)
		require.Contains(t, swept, filepath.Join(l.State, testNS, "."+testID))
		requireNothing(t, l)
	})
}

// TestRemoveKeepsWhatIsInRootfs: it may be somebody's data.
func TestRemoveKeepsWhatIsInRootfs(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	fill(t, b)
	mine := filepath.Join(b.Rootfs(), "data", "mine")
	put(t, mine, "precious")
	before := names(t, b.Path)
	for range 2 {
		err := b.Remove()
		require.ErrorIs(t, err, ErrNotEmpty)
		require.True(t, errdefs.IsFailedPrecondition(err))
		require.ErrorContains(t, err, `"data"`)
		require.ErrorContains(t, err, b.Rootfs())
		require.Equal(t, "precious", content(t, mine))
		require.Equal(t, before, names(t, b.Path))
		require.DirExists(t, b.work.path)
	}
	require.NoError(t, os.RemoveAll(filepath.Join(b.Rootfs(), "data")))
	require.NoError(t, b.Remove())
	requireNothing(t, l)
}

func TestRemoveKeepsAFileInPlaceOfRootfs(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	require.NoError(t, os.Remove(b.Rootfs()))
	put(t, b.Rootfs(), "precious")
	err := b.Remove()
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	require.Equal(t, "precious", content(t, b.Rootfs()))
	require.DirExists(t, b.work.path)
}

// TestRemoveFollowsNoLink puts a link to a full directory wherever one can be.
func TestRemoveFollowsNoLink(t *testing.T) {
	for name, link := range map[string]func(b *Bundle) string{
		"rootfs":         func(b *Bundle) string { return b.Rootfs() },
		"work link":      func(b *Bundle) string { return b.file(workLink) },
		"work dir":       func(b *Bundle) string { return b.work.path },
		"in the bundle":  func(b *Bundle) string { return b.file("other") },
		"config.json":    func(b *Bundle) string { return b.file(configFile) },
		"in a subdir":    func(b *Bundle) string { return b.file(filepath.Join("sub", "dir", "link")) },
		"in the workdir": func(b *Bundle) string { return filepath.Join(b.work.path, "sub", "link") },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			elsewhere := t.TempDir()
			put(t, filepath.Join(elsewhere, "rootfs", "precious"), "x")
			put(t, filepath.Join(elsewhere, "precious"), "x")
			b := create(t, l, testID)
			fill(t, b)
			path := link(b)
			require.NoError(t, os.RemoveAll(path))
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			require.NoError(t, os.Symlink(elsewhere, path))

			require.NoError(t, b.Remove())
			requireNothing(t, l)
			require.Equal(t, "x", content(t, filepath.Join(elsewhere, "precious")))
			require.Equal(t, "x", content(t, filepath.Join(elsewhere, "rootfs", "precious")))
		})
	}
}

// TestRemovePartsWithALinkAtOnce: a link in the place of the work directory leaves no hidden link, which no sweep would
// remove after a crash.
func TestRemovePartsWithALinkAtOnce(t *testing.T) {
	l := newLayout(t)
	elsewhere := t.TempDir()
	put(t, filepath.Join(elsewhere, "precious"), "x")
	b := create(t, l, testID)
	require.NoError(t, os.Remove(b.work.path))
	require.NoError(t, os.Symlink(elsewhere, b.work.path))
	require.NoError(t, b.work.moveAway())
	require.Empty(t, names(t, filepath.Dir(b.work.path)))
	require.Equal(t, "x", content(t, filepath.Join(elsewhere, "precious")))
	require.NoError(t, b.Remove())
	requireNothing(t, l)
}

// TestRemoveOnlyItsOwnWorkDir: the link may say what it likes.
func TestRemoveOnlyItsOwnWorkDir(t *testing.T) {
	l := newLayout(t)
	other := create(t, l, "other")
	fill(t, other)
	b := create(t, l, testID)
	require.NoError(t, os.Remove(b.file(workLink)))
	require.NoError(t, os.Symlink(other.work.path, b.file(workLink)))
	require.NoError(t, b.Remove())
	require.Equal(t, []string{"other"}, names(t, filepath.Dir(b.work.path)))
	require.Equal(t, "x", content(t, filepath.Join(other.work.path, "sub", "deep", "file")))
}

func TestRemoveRefusesLinkInPlaceOfBundle(t *testing.T) {
	for name, at := range map[string]func(l Layout) string{
		"bundle":         func(l Layout) string { return filepath.Join(l.State, testNS, testID) },
		"namespace":      func(l Layout) string { return filepath.Join(l.State, testNS) },
		"work namespace": func(l Layout) string { return filepath.Join(l.Root, testNS) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			b := create(t, l, testID)
			fill(t, b)
			moved := filepath.Join(t.TempDir(), "moved")
			require.NoError(t, os.Rename(at(l), moved))
			require.NoError(t, os.Symlink(moved, at(l)))
			err := b.Remove()
			require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
			require.NotEmpty(t, names(t, moved))
			require.Equal(t, "x", content(t, filepath.Join(b.Path, bootstrapFile)))
			require.Equal(t, "x", content(t, filepath.Join(b.work.path, "sub", "deep", "file")))
		})
	}
}

func TestRemoveOddNames(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	for _, name := range []string{" ", "-rf", "...", "a\nb", "*", "~", "$HOME", `back\slash`, "é",
		strings.Repeat("n", 255), ".hidden"} {
		put(t, b.file(name), "x")
		put(t, filepath.Join(b.work.path, name, name), "x")
	}
	require.NoError(t, os.WriteFile(b.file("readonly"), nil, 0o400))
	if os.Geteuid() == 0 {
		require.NoError(t, os.Mkdir(b.file("closed"), 0o000))
	}
	require.NoError(t, b.Remove())
	requireNothing(t, l)
}

func TestRemoveOfForeignHandle(t *testing.T) {
	for _, b := range []*Bundle{{}, {Namespace: testNS, ID: testID, Path: t.TempDir()}} {
		require.True(t, errdefs.IsInvalidArgument(b.Remove()))
	}
	l := newLayout(t)
	b := create(t, l, testID)
	b.Path = t.TempDir()
	require.True(t, errdefs.IsInvalidArgument(b.Remove()))
	require.DirExists(t, b.Path)
}

// TestRemoveWhileFilesComeAndGo: a shim, or an agent, may still be at work in the bundle.
func TestRemoveWhileFilesComeAndGo(t *testing.T) {
	for range 50 {
		l := newLayout(t)
		b := create(t, l, testID)
		fill(t, b)
		for i := range 30 {
			put(t, filepath.Join(b.work.path, "many", string(rune('a'+i%26)), "f"), "x")
		}
		var others sync.WaitGroup
		for _, dir := range []string{b.Path, b.work.path} {
			others.Go(func() { os.RemoveAll(filepath.Join(dir, "many")) })
			others.Go(func() {
				for _, name := range []string{logFile, addressFile, recordFile, "sub"} {
					os.RemoveAll(filepath.Join(dir, name))
				}
			})
		}
		err := b.Remove()
		others.Wait()
		require.NoError(t, err)
		requireNothing(t, l)
	}
}

// TestRemoveConcurrently: several callers, one removal.
func TestRemoveConcurrently(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	fill(t, b)
	errs := make([]error, 8)
	var callers sync.WaitGroup
	for i := range errs {
		callers.Go(func() { errs[i] = b.Remove() })
	}
	callers.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	requireNothing(t, l)
}
