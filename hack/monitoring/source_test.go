// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// metric is the labels of one, each with all that it may say; with nothing where that is no closed list.
type metric map[string][]string

// source is package metrics as it is written: its functions that make a metric are given name, help and labels as plain
// strings, and its variable `values` has the closed lists.
type source struct {
	t *testing.T
	// what is declared at the top of a file, by name
	declared map[string]ast.Expr
	made     map[string]metric
}

// known are the metrics that the code makes, with the suffixes of histograms, and with the labels that a scrape adds.
func known(t *testing.T) map[string]metric {
	t.Helper()
	s := &source{t, make(map[string]ast.Expr), map[string]metric{"up": {}}}
	files, err := filepath.Glob("../../manager/internal/metrics/*.go")
	require.NoError(t, err)
	var parsed []*ast.File
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		parsed = append(parsed, f)
		s.declarations(f)
	}
	for _, f := range parsed {
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				s.make(call)
			}
			return true
		})
	}
	s.closedLists()
	for _, m := range s.made {
		for _, label := range []string{"cluster", "instance", "job"} {
			m[label] = nil
		}
	}
	require.Greater(t, len(s.made), 30)
	return s.made
}

func (s *source) declarations(f *ast.File) {
	for _, d := range f.Decls {
		of, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range of.Specs {
			if v, ok := spec.(*ast.ValueSpec); ok {
				for n, name := range v.Names {
					if n < len(v.Values) {
						s.declared[name.Name] = v.Values[n]
					}
				}
			}
		}
	}
}

// make notes a metric that a call makes.
func (s *source) make(call *ast.CallExpr) {
	maker, ok := call.Fun.(*ast.Ident)
	if !ok || len(call.Args) < 2 {
		return
	}
	labels := call.Args[2:]
	switch maker.Name {
	case "histogram":
		labels = call.Args[3:]
	case "gauge", "counter", "desc":
	default:
		return
	}
	m := metric{}
	for _, label := range labels {
		m[s.text(label)] = nil
	}
	name := "shimyard_" + s.text(call.Args[0])
	if maker.Name != "histogram" {
		s.made[name] = m
		return
	}
	s.made[name+"_sum"], s.made[name+"_count"] = m, m
	bucket := metric{"le": nil}
	for label := range m {
		bucket[label] = nil
	}
	s.made[name+"_bucket"] = bucket
}

// closedLists reads `values`.
func (s *source) closedLists() {
	all, ok := s.declared["values"].(*ast.CompositeLit)
	require.True(s.t, ok)
	for _, e := range all.Elts {
		of := e.(*ast.KeyValueExpr)
		name := "shimyard_" + s.text(of.Key)
		for _, l := range of.Value.(*ast.CompositeLit).Elts {
			label := l.(*ast.KeyValueExpr)
			found := false
			for _, suffix := range []string{"", "_sum", "_count", "_bucket"} {
				if m, ok := s.made[name+suffix]; ok {
					require.Contains(s.t, m, s.text(label.Key), name)
					m[s.text(label.Key)] = s.texts(label.Value)
					found = true
				}
			}
			require.True(s.t, found, "there is no metric %s", name)
		}
	}
}

// texts are the strings of a list, or of a variable that is one.
func (s *source) texts(e ast.Expr) (all []string) {
	if name, ok := e.(*ast.Ident); ok {
		e = s.declared[name.Name]
	}
	list, ok := e.(*ast.CompositeLit)
	require.True(s.t, ok)
	for _, one := range list.Elts {
		all = append(all, s.text(one))
	}
	return all
}

// text is a string, or a constant that is one.
func (s *source) text(e ast.Expr) string {
	if name, ok := e.(*ast.Ident); ok {
		e = s.declared[name.Name]
	}
	lit, ok := e.(*ast.BasicLit)
	require.True(s.t, ok)
	text, err := strconv.Unquote(lit.Value)
	require.NoError(s.t, err)
	return text
}

// TestWrongQueries: what the checks of this package are there to find.
func TestWrongQueries(t *testing.T) {
	metrics := known(t)
	require.Equal(t, []string{"connecting", "connected", "unresponsive", "ended"},
		metrics["shimyard_processes"]["state"])
	require.Contains(t, metrics["shimyard_create_duration_seconds_bucket"]["source"], "warm")
	require.NotContains(t, metrics, "shimyard_process")
	for query, ok := range map[string]bool{
		`shimyard_processes{state="unresponsive"}`:    true,
		`shimyard_processes{state="unresponsiv"}`:     false,
		`shimyard_processes{state!="unresponsiv"}`:    false,
		`shimyard_processes{state=~"un.*"}`:           true,
		`shimyard_processes{state=~"silent|stopped"}`: false,
		`shimyard_processes{stat="unresponsive"}`:     false,
		`shimyard_processes{runtime="anything"}`:      true,
		`sum by (state) (shimyard_processes)`:         true,
		`sum by (proof) (shimyard_processes)`:         false,
	} {
		require.Equal(t, ok, passes(func(t require.TestingT) { check(t, metrics, query) }), query)
	}
}

// verdict is a test that is to be known to have failed.
type verdict struct{ failed bool }

func (v *verdict) Errorf(string, ...any) { v.failed = true }
func (v *verdict) FailNow()              { runtime.Goexit() }

func passes(test func(t require.TestingT)) bool {
	v, done := &verdict{}, make(chan struct{})
	go func() {
		defer close(done)
		test(v)
	}()
	<-done
	return !v.failed
}
