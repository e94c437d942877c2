// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is said of a node to its operator is something that a check does: what the page's table says of containers
// names one, and every check that the page names is there.
func TestNodePageNamesItsChecks(t *testing.T) {
	data, err := os.ReadFile("../../.github/docs/node.md")
	require.NoError(t, err)
	page := strings.Join(strings.Fields(string(data)), " ") // a name may go over the end of a line
	checks := checkNames(t)
	cited := regexp.MustCompile(`\[(Test[^\]]*)\]`)
	for _, name := range cited.FindAllStringSubmatch(page, -1) {
		require.Contains(t, checks, name[1])
	}
	_, table, found := strings.Cut(string(data), "\n|---|---|---|---|\n")
	require.True(t, found, "the table of what happens to containers")
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 {
			break
		}
		for _, claim := range cells[3:5] {
			said := strings.TrimSpace(claim) != "" && strings.TrimSpace(claim) != "as above"
			require.True(t, !said || cited.MatchString(claim), "no check is named: %s", claim)
		}
	}
}

// checkNames are the tests of this package and of integration, and the checks of those that have a list of them.
func checkNames(t *testing.T) []string {
	names := testNames(t, ".")
	require.Contains(t, names, "TestReboot")
	for _, c := range nodeChecks {
		names = append(names, "TestNode/"+c.name)
	}
	for _, s := range packageSteps(chapter{}) {
		names = append(names, "TestPackage/"+s.name)
	}
	return append(names, testNames(t, "..")...)
}

// testNames reads the names of a directory's tests out of the source.
func testNames(t *testing.T, dir string) (names []string) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	require.NoError(t, err)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names
}

// The package leaves /usr/bin/containerd to containerd's own, which has no command for shims: what pages and alerts tell
// an operator to run is called as the package calls it.
func TestPagesNameThePackagesCommand(t *testing.T) {
	packed, err := os.ReadFile("../../hack/package/nfpm.yaml")
	require.NoError(t, err)
	link := regexp.MustCompile(`src: \.\./lib/shimyard/containerd\n +dst: /usr/bin/(\S+)\n`).FindSubmatch(packed)
	require.NotNil(t, link)
	told := regexp.MustCompile("(?m)(?:^ *|`)([a-z]+) shims [a-z]+")
	pages, err := filepath.Glob("../../.github/docs/*.md")
	require.NoError(t, err)
	count := 0
	for _, page := range append(pages, "../../README.md", "../../hack/monitoring/shimyard.rules.yaml") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, command := range told.FindAllStringSubmatch(string(text), -1) {
			require.Equal(t, string(link[1]), command[1], "%s: %s", page, command[0])
			count++
		}
	}
	require.Greater(t, count, 15)
}

// The commands of the README's chapter are those that the package's checks run, all of them, as they stand.
func TestReadmeIsWhatRuns(t *testing.T) {
	readme := readChapter(t)
	var scripts strings.Builder
	for _, s := range packageSteps(readme) {
		scripts.WriteString(s.script)
	}
	commands := reflect.ValueOf(readme)
	for n := range commands.NumField() {
		name, text := commands.Type().Field(n).Name, strings.TrimSpace(commands.Field(n).String())
		require.NotEmpty(t, text, name)
		require.Contains(t, scripts.String(), text, name)
	}
}
