// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager"
	"github.com/shimyard/shimyard/shimclient"
)

// referenceFile is made of the config structs and their comments: the reference of the config can only say what the
// code says.
const referenceFile = "../.github/docs/config.md"

var writeReference = flag.Bool("write", false, "write "+referenceFile+" instead of comparing with it")

// TestConfigReference fails when the reference is not what the structs and their comments make of it. `make reference`
// writes it.
func TestConfigReference(t *testing.T) {
	want := reference(t)
	if *writeReference {
		require.NoError(t, os.WriteFile(referenceFile, []byte(want), 0o644))
	}
	got, err := os.ReadFile(referenceFile)
	require.NoError(t, err)
	require.Equal(t, want, string(got), "%s is stale: run make reference", referenceFile)
}

func reference(t *testing.T) string {
	var b strings.Builder
	docs := fieldComments(t, "config.go", "config_runtimes.go")
	fmt.Fprintf(&b,
		"# Configuration\n\nMade of the code's own comments by `make reference`; not to be edited. The README has an example.\n\n"+
			"`containerd config dump` shows what the daemon makes of a file. A key that is not known here is warned about, with the nearest one that\n"+
			"is; a bad value stops the daemon with an error that names the key. Durations are written as `\"500ms\"`, `\"2s\"`, `\"10m\"`.\n")
	keyTable(&b, docs, "[plugins.'"+shimURI+"']", defaultShimConfig())
	b.WriteString("\n### deadlines\n\nBy default:\n\n| method | deadline |\n|---|---|\n")
	deadlines := shimclient.DefaultDeadlines()
	for _, method := range slices.Sorted(maps.Keys(deadlines)) {
		fmt.Fprintf(&b, "| `%s` | `\"%s\"` |\n", method,
			regexp.MustCompile(`m0s$`).ReplaceAllString(deadlines[method].String(), "m"))
	}
	fmt.Fprintf(&b,
		"\nNone by default, only the caller's: %s. Those without a caller, for which `\"0s\"` is refused: %s.\n",
		codes(without(shimMethods(), slices.Collect(maps.Keys(deadlines)))),
		codes(slices.Sorted(slices.Values(shimclient.OwnCalls))))
	keyTable(&b, docs, "[plugins.'"+shimURI+"'.runtimes.NAME]", RuntimeConfig{})
	keyTable(&b, docs, "[plugins.'"+taskURI+"']", TaskConfig{})
	b.WriteString("\n## [timeouts]\n\n| key | default |\n|---|---|\n")
	setDefaultTimeouts()
	for _, name := range []string{manager.TimeoutLoad, manager.TimeoutCleanup, manager.TimeoutShutdown} {
		fmt.Fprintf(&b, "| `'%s'` | `\"%s\"` |\n", name, timeout.Get(name))
	}
	return b.String()
}

// keyTable writes a table of the keys of a struct, with the values that it has as the defaults.
func keyTable(b *strings.Builder, docs map[string]string, title string, of any) {
	v := reflect.ValueOf(of)
	fmt.Fprintf(b, "\n## %s\n\n| key | default | |\n|---|---|---|\n", title)
	keys := make(map[string]string)
	for f := range v.Type().Fields() {
		keys[f.Name] = f.Tag.Get("toml")
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", keys[f.Name], shown(f.Name, v.Field(i)),
			described(docs[v.Type().Name()+"."+f.Name], keys))
	}
}

// shown is a default as it is written in a file; nothing where it depends on the machine or the runtime, which the
// comment says.
func shown(name string, v reflect.Value) string {
	switch {
	case v.Kind() == reflect.Map && v.Len() > 0:
		return "see below"
	case v.Kind() == reflect.String && v.String() != "":
		return fmt.Sprintf("`%q`", v)
	case v.Kind() == reflect.Int:
		return fmt.Sprintf("`%d`", v.Int())
	case v.Kind() == reflect.Slice && name != "Platforms":
		return "`[]`"
	}
	return ""
}

// described is a comment with the keys in place of the names of the fields.
func described(comment string, keys map[string]string) string {
	text := strings.Join(strings.Fields(comment), " ")
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		text = regexp.MustCompile(`\b`+name+`\b`).ReplaceAllLiteralString(text, "`"+keys[name]+"`")
	}
	return strings.ReplaceAll(text, "|", "\\|")
}

// fieldComments are those of the fields of all structs in some files of this package, by STRUCT.FIELD. Each field has
// one.
func fieldComments(t *testing.T, files ...string) map[string]string {
	found := make(map[string]string)
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			s, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, f := range s.Fields.List {
				for _, id := range f.Names {
					require.True(t, strings.HasPrefix(f.Doc.Text(), id.Name+" "),
						"the comment of %s.%s does not begin with its name", spec.Name, id)
					found[spec.Name.Name+"."+id.Name] = f.Doc.Text()
				}
			}
			return true
		})
	}
	return found
}

func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all),
		func(s string) bool { return slices.Contains(some, s) || strings.HasPrefix(s, "Wait") })
}

func codes(words []string) string { return "`" + strings.Join(words, "`, `") + "`" }
