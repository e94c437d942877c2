// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const ourModule = "github.com/shimyard/shimyard/"

// room is a package of the manager as its files are, on every operating system and without the tests.
type room struct {
	name, what string
	uses       []string
	locks      []string // the fields that are mutexes, by type and name
}

// roomsOf reads the packages at and below a directory.
func roomsOf(t *testing.T) []room {
	t.Helper()
	byDir := make(map[string][]*ast.File)
	fset := token.NewFileSet()
	require.NoError(t, filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		byDir[filepath.Dir(path)] = append(byDir[filepath.Dir(path)], f)
		return err
	}))
	var rooms []room
	for dir, files := range byDir {
		r := room{name: strings.TrimSuffix("manager/"+filepath.ToSlash(dir), "/.")}
		for _, f := range files {
			r.uses = append(r.uses, usesOf(t, f)...)
			r.locks = append(r.locks, locksOf(f)...)
			if f.Doc != nil {
				r.what = (&doc.Package{}).Synopsis(f.Doc.Text())
			}
		}
		slices.Sort(r.uses)
		r.uses = slices.Compact(r.uses)
		rooms = append(rooms, r)
	}
	slices.SortFunc(rooms, func(a, b room) int { return strings.Compare(a.name, b.name) })
	return rooms
}

func usesOf(t *testing.T, f *ast.File) (uses []string) {
	t.Helper()
	for _, spec := range f.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		require.NoError(t, err)
		if name, ours := strings.CutPrefix(path, ourModule); ours {
			uses = append(uses, name)
		}
	}
	return uses
}

func locksOf(f *ast.File) (locks []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		s, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		for _, field := range s.Fields.List {
			sel, ok := field.Type.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Mutex" && sel.Sel.Name != "RWMutex" {
				continue
			}
			for _, name := range field.Names {
				locks = append(locks, f.Name.Name+"."+spec.Name.Name+"."+name.Name)
			}
		}
		return true
	})
	return locks
}

// TestRoomsOnThePage holds the picture of the rooms in DESIGN.md to what they really import. What it prints when they
// differ is what belongs there.
func TestRoomsOnThePage(t *testing.T) {
	var want strings.Builder
	want.WriteString("| room | what it is | uses |\n|---|---|---|\n")
	for _, r := range roomsOf(t) {
		uses := "nothing of ours"
		if len(r.uses) > 0 {
			uses = "`" + strings.Join(r.uses, "` `") + "`"
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", r.name, r.what, uses)
	}
	page, err := os.ReadFile("DESIGN.md")
	require.NoError(t, err)
	require.True(t, strings.Contains(string(page), want.String()), "put this into manager/DESIGN.md:\n%s",
		want.String())
}

// TestLocksOnThePage: each lock has a place in the order that DESIGN.md gives.
func TestLocksOnThePage(t *testing.T) {
	b, err := os.ReadFile("DESIGN.md")
	require.NoError(t, err)
	_, page, found := strings.Cut(string(b), "\n## Locks, and their order\n")
	require.True(t, found)
	page, _, _ = strings.Cut(page, "\n## ")
	for _, r := range roomsOf(t) {
		for _, lock := range r.locks {
			lock = "`" + strings.TrimPrefix(lock, "manager.") + "`"
			require.True(t, strings.Contains(page, lock), "say in manager/DESIGN.md what may be done under the lock %s",
				lock)
		}
	}
}
