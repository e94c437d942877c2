// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// goTool runs the go command in the integration module, cgo off.
func goTool(t *testing.T, args ...string) string {
	cmd := exec.Command("go", args...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	return strings.TrimSpace(string(out))
}

// The second way to build a daemon lists containerd's builtins itself, all of this containerd version but the two that
// ours replace.
func TestMinimalDaemonHasAllBuiltins(t *testing.T) {
	imports := func(path string) []string {
		return strings.Fields(goTool(t, "list", "-f", "{{range .Imports}}{{.}}\n{{end}}", path))
	}
	want := slices.DeleteFunc(imports("github.com/containerd/containerd/v2/cmd/containerd/builtins"),
		func(path string) bool {
			return strings.HasSuffix(path, "/core/runtime/v2") || strings.HasSuffix(path, "/plugins/sandbox")
		})
	var got []string
	for _, path := range imports("./containerd-minimal") {
		if path == "github.com/containerd/containerd/v2/cmd/containerd/command" ||
			strings.HasPrefix(path, ourModule+"/plugin") || !strings.Contains(path, ".") {
			continue
		}
		got = append(got, path)
	}
	require.ElementsMatch(t, want, got)
}

func TestMinimalDaemonBuildsWithoutTheStockRuntime(t *testing.T) {
	deps := strings.Fields(goTool(t, "list", "-deps", "./containerd-minimal"))
	require.NotContains(t, deps, "github.com/containerd/containerd/v2/core/runtime/v2")
	require.NotContains(t, deps, "github.com/containerd/containerd/v2/plugins/sandbox")
	require.Contains(t, deps, "github.com/shimyard/shimyard/manager")

	binary := filepath.Join(t.TempDir(), "containerd")
	goTool(t, "build", "-o", binary, "./containerd-minimal")
	out, err := exec.Command(binary, "config", "default").Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "[plugins.'io.containerd.shim.v1.manager'.deadlines]")
	require.Contains(t, string(out), "'io.containerd.timeout.shim.load' = '5s'")
}
