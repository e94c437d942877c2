// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestOneStep: where the state and the record are judged or changed together, the instance's lock is held from the
// first to the last. What two steps in place of the one would cost is shown by TestTwoStepsInPlaceOfOne in package
// ledger; they cannot be raced reliably, so it is the source that is held to the rule: a state that is given to the
// ledger comes from inStep alone, and an event that changes the state takes the lock once and keeps it until it
// returns.
func TestOneStep(t *testing.T) {
	paths, err := filepath.Glob("*.go")
	require.NoError(t, err)
	changes := 0
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		require.NoError(t, err)
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			calls := callsOf(fn)
			for _, asked := range []string{"HearExit", "HearDelete", "BeginSpeaking", "ReplayDue", "RepeatDue"} {
				require.True(t, calls[asked] == 0 || calls["inStep"] == 1,
					"%s gives the ledger a state that may be another by then; inStep gives one that stays", fn.Name)
			}
			if calls["toLocked"] > 0 || fn.Name.Name == "inStep" {
				changes++
				require.True(t, keepsLock(fn), "%s must lock the instance first, and unlock it by a defer alone", fn.Name)
			}
		}
	}
	require.Greater(t, changes, 8, "the events were not found")
}

// callsOf counts what a function calls, by the names.
func callsOf(fn *ast.FuncDecl) map[string]int {
	calls := make(map[string]int)
	ast.Inspect(fn, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
				calls[sel.Sel.Name]++
			}
		}
		return true
	})
	return calls
}

// keepsLock tells whether a function takes the lock once and unlocks it by a defer.
func keepsLock(fn *ast.FuncDecl) bool {
	calls := callsOf(fn)
	deferred := false
	for _, s := range fn.Body.List {
		if d, ok := s.(*ast.DeferStmt); ok {
			sel, ok := d.Call.Fun.(*ast.SelectorExpr)
			deferred = deferred || ok && sel.Sel.Name == "Unlock"
		}
	}
	return deferred && calls["Lock"] == 1 && calls["Unlock"] == 1
}
