// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
)

func init() {
	life.Misstep = func(_ context.Context, from, to life.State) {
		panic(fmt.Sprintf("an instance that is %s must not become %s", from, to))
	}
}

// TestTransitions tries every change of the state against the table, and holds DESIGN.md to the table. What it prints
// when they differ is what belongs there.
func TestTransitions(t *testing.T) {
	for _, from := range allStates {
		require.Contains(t, life.Allowed, from)
		for _, to := range allStates {
			i := newInstance(memManager(t), noLayout, life.Task, testNamespace, "c1", from)
			change := func() {
				i.mu.Lock()
				defer i.mu.Unlock()
				i.toLocked(to)
			}
			if from == to || from == life.Gone || slices.Contains(life.Allowed[from], to) {
				require.NotPanics(t, change)
			} else {
				require.Panics(t, change, "%s to %s", from, to)
			}
			st, _ := i.watch()
			require.Equal(t, slices.Contains(life.Allowed[from], to) || from == to, st == to, "%s to %s", from, to)
		}
	}
	page, err := os.ReadFile("DESIGN.md")
	require.NoError(t, err)
	require.Contains(t, string(page), transitionTable(), "put this into manager/DESIGN.md:\n%s", transitionTable())
}

func transitionTable() string {
	var b strings.Builder
	b.WriteString("| state | may become |\n|---|---|\n")
	for _, from := range allStates {
		next := make([]string, 0, len(life.Allowed[from]))
		for _, to := range life.Allowed[from] {
			next = append(next, to.String())
		}
		fmt.Fprintf(&b, "| %s | %s |\n", from, strings.Join(next, ", "))
	}
	return b.String()
}

// TestMapOfFiles holds the table of DESIGN.md to the directory: it names every file of the package and every room below
// it, and no file that is not there.
func TestMapOfFiles(t *testing.T) {
	page, err := os.ReadFile("DESIGN.md")
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(page), "## What lives where")
	require.True(t, ok)
	table, _, ok = strings.Cut(table, "\n## ")
	require.True(t, ok)
	var named []string
	for _, row := range strings.Split(table, "\n") {
		dir := ""
		for n, word := range strings.Split(row, "`") {
			switch {
			case n%2 == 0: // not between backticks
			case strings.HasSuffix(word, ".go"):
				found, err := filepath.Glob(filepath.Join(dir, word))
				require.NoError(t, err)
				require.NotEmpty(t, found, "DESIGN.md names %s, which is not there", filepath.Join(dir, word))
				named = append(named, found...)
			default:
				dir = filepath.Clean(word)
				require.DirExists(t, dir)
				named = append(named, dir)
			}
		}
	}
	there, err := filepath.Glob("*.go")
	require.NoError(t, err)
	rooms, err := filepath.Glob("internal/*")
	require.NoError(t, err)
	for _, name := range append(there, rooms...) {
		if name != "doc.go" && !strings.HasSuffix(name, "_test.go") {
			require.Contains(t, named, name, "say in DESIGN.md what lives there")
		}
	}
}
