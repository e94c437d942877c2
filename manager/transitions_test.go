// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func init() {
	misstep = func(_ context.Context, from, to state) {
		panic(fmt.Sprintf("an instance that is %s must not become %s", from, to))
	}
}

// TestTransitions tries every change of the state against the table, and holds DESIGN.md to the table. What it prints
// when they differ is what belongs there.
func TestTransitions(t *testing.T) {
	for _, from := range allStates {
		require.Contains(t, allowed, from)
		for _, to := range allStates {
			i := newInstance(memManager(t), noLayout, KindTask, testNamespace, "c1", from)
			change := func() {
				i.mu.Lock()
				defer i.mu.Unlock()
				i.toLocked(to)
			}
			if from == to || from == gone || slices.Contains(allowed[from], to) {
				require.NotPanics(t, change)
			} else {
				require.Panics(t, change, "%s to %s", from, to)
			}
			st, _ := i.watch()
			require.Equal(t, slices.Contains(allowed[from], to) || from == to, st == to, "%s to %s", from, to)
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
		next := make([]string, 0, len(allowed[from]))
		for _, to := range allowed[from] {
			next = append(next, to.String())
		}
		fmt.Fprintf(&b, "| %s | %s |\n", from, strings.Join(next, ", "))
	}
	return b.String()
}
