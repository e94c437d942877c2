// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package results reads what a suite's programs report, compares what two daemons made of the same suite, and holds
// both to a list of what is known.
package results

import (
	"sort"
)

// Outcome is what became of one test.
type Outcome string

// The outcomes. A test that began and did not end failed. Absent is the outcome of one that another run had.
const (
	Pass   Outcome = "pass"
	Fail   Outcome = "fail"
	Skip   Outcome = "skip"
	Absent Outcome = "absent"
)

// Test is one test of a run.
type Test struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	Seconds float64 `json:"seconds,omitempty"`
	// Output is the end of what a test wrote that failed or was skipped.
	Output string `json:"output,omitempty"`
}

// Side is the daemon that a run was held against.
type Side string

// The sides: containerd as its own project builds it, and the daemon with this project's runtime.
const (
	Stock Side = "stock"
	Ours  Side = "ours"
)

// Run is what one side made of a suite.
type Run struct {
	Tests   []Test  `json:"tests"`
	Seconds float64 `json:"seconds"`
	// Errors say why the run as a whole is not what it should be: a program that crashed, a process that was left
	// behind.
	Errors []string `json:"errors,omitempty"`
}

// Count is how many tests had the outcome.
func (r *Run) Count(o Outcome) int {
	n := 0
	for _, t := range r.Tests {
		if t.Outcome == o {
			n++
		}
	}
	return n
}

// byName are the tests by name. One that was run several times counts as its worst.
func (r *Run) byName() map[string]Test {
	rank := map[Outcome]int{Skip: 0, Pass: 1, Fail: 2}
	tests := map[string]Test{}
	for _, t := range r.Tests {
		if old, ok := tests[t.Name]; !ok || rank[t.Outcome] > rank[old.Outcome] {
			tests[t.Name] = t
		}
	}
	return tests
}

func names(runs ...map[string]Test) []string {
	set := map[string]bool{}
	for _, run := range runs {
		for name := range run {
			set[name] = true
		}
	}
	var list []string
	for name := range set {
		list = append(list, name)
	}
	sort.Strings(list)
	return list
}
