// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestKillsTakeALicence: these are the places at which a process is ended by force. In package shimproc each takes a
// Licence; the one in this package is a client's SIGKILL, or the end of a dead shim's container.
func TestKillsTakeALicence(t *testing.T) {
	want := map[string]int{
		"internal/shimproc/ending.go: Kill":       1,
		"internal/shimproc/licence.go: EndLaunch": 1,
		"ask.go: killInit":                        1,
	}
	got := make(map[string]int)
	require.NoError(t, filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				if n := killsIn(fn); n > 0 {
					got[filepath.ToSlash(path)+": "+fn.Name.Name] = n
				}
			}
		}
		return nil
	}))
	require.Equal(t, want, got)
}

// killsIn counts what a function ends by force: what a launch has left, or a process by SIGKILL.
func killsIn(fn *ast.FuncDecl) (n int) {
	ast.Inspect(fn, func(node ast.Node) bool {
		call, ok := node.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		of, _ := sel.X.(*ast.Ident)
		if sel.Sel.Name == "Signal" && isSIGKILL(call.Args) ||
			sel.Sel.Name == "EndLaunch" && of != nil && of.Name == "shimclient" {
			n++
		}
		return true
	})
	return n
}

func isSIGKILL(args []ast.Expr) bool {
	if len(args) != 1 {
		return false
	}
	sel, ok := args[0].(*ast.SelectorExpr)
	return ok && sel.Sel.Name == "SIGKILL"
}
