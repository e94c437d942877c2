// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// badPartEnv makes TestPartTwo fail.
const badPartEnv = "SHIMTEST_BAD_PART"

func TestPartOne(*testing.T) {}

func TestPartTwo(t *testing.T) {
	if os.Getenv(badPartEnv) != "" {
		t.Error("this part is bad")
	}
}

// TestParts: all tests run, in several processes, and one that fails makes the whole fail and says why.
func TestParts(t *testing.T) {
	names, err := testNames()
	require.NoError(t, err)
	require.Subset(t, names, []string{"TestPartOne", "TestPartTwo", "TestParts"})
	parts := []string{"TestPartOne", "TestPartTwo"}
	code, _ := outputOf(t, func() int { return runParts(parts, 3) })
	require.Zero(t, code)
	t.Setenv(badPartEnv, "1")
	code, out := outputOf(t, func() int { return runParts(parts, 2) })
	require.Equal(t, 1, code)
	require.Contains(t, out, "this part is bad")
	require.NotContains(t, out, "--- FAIL: TestPartOne")
}

// outputOf is what a function writes to the standard output.
func outputOf(t *testing.T, f func() int) (code int, out string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out")
	file, err := os.Create(path)
	require.NoError(t, err)
	stdout := os.Stdout
	os.Stdout = file
	code = f()
	os.Stdout = stdout
	require.NoError(t, file.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return code, string(b)
}

// TestPartsShareATestLog: what any part has looked at is in the log that the go command reads.
func TestPartsShareATestLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "whole")
	require.NoError(t, os.WriteFile(partLog(dir, 0), []byte(logHead+"getenv A\n"), 0o600))
	require.NoError(t, os.WriteFile(partLog(dir, 2), []byte(logHead+"open b\n"), 0o600))
	require.NoError(t, joinLogs(path, dir, 3))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, logHead+"getenv A\nopen b\n", string(b))
	require.NoError(t, joinLogs("", dir, 3))
}
