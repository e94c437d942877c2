// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// fromPackage is a program without what stands above its package clause.
func fromPackage(t *testing.T, source string) string {
	_, rest, ok := strings.Cut(source, "package main\n")
	require.True(t, ok)
	return rest
}

// Both programs that the README shows compile as they stand there, and the second is the one in containerd-minimal.
func TestReadmePrograms(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	var programs []string
	for _, block := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1) {
		if strings.HasPrefix(block[1], "package main\n") {
			programs = append(programs, block[1])
		}
	}
	require.Len(t, programs, 2, "the README shows one program for each way to build a daemon")
	require.Contains(t, programs[0], "plugin.Replace()")
	minimal, err := os.ReadFile("../containerd-minimal/main.go")
	require.NoError(t, err)
	require.Equal(t, fromPackage(t, string(minimal)), fromPackage(t, programs[1]))

	// The overlay puts the first one into the module without a file in the tree; the second is compiled where it is.
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(source, []byte(programs[0]), 0o600))
	module, err := filepath.Abs("..")
	require.NoError(t, err)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(module, "readme",
		"main.go"): source}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	goTool(t, "build", "-o", os.DevNull, "-overlay", filepath.Join(dir, "overlay.json"), "./readme")
}
