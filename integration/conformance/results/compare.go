// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package results

import "fmt"

// Summary is the comparison of both sides over one suite. It is what a run leaves for the table of all suites.
type Summary struct {
	Suite string           `json:"suite"`
	About string           `json:"about"`
	Sides map[Side]Numbers `json:"sides"`
	// Differ are the tests with different outcomes, Failed those that failed with both; by name.
	Differ []Line `json:"differ,omitempty"`
	Failed []Line `json:"failed,omitempty"`
	// Errors say why the comparison fails; there are none if all is as it should be.
	Errors []string `json:"errors,omitempty"`
	// Notes is what a suite wants to have said, such as figures that it measured.
	Notes []string `json:"notes,omitempty"`
}

// Numbers are those of one side.
type Numbers struct {
	Passed  int     `json:"passed"`
	Failed  int     `json:"failed"`
	Skipped int     `json:"skipped"`
	Seconds float64 `json:"seconds"`
}

// Line is one test that is worth a line.
type Line struct {
	Name  string  `json:"name"`
	Stock Outcome `json:"stock"`
	Ours  Outcome `json:"ours"`
	// Kind and Reason are those of the list, empty if the test is not known.
	Kind   Kind   `json:"kind,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Leftovers is the test of every suite that no shim outlives it.
const Leftovers = "no shim is left"

// Compare holds both runs against each other and against the list. narrowed says that only some of the tests ran, so
// that one which is absent proves nothing, and that the run is to tell of ours: a test that stock alone fails, and that
// is not listed, is printed and no error, since a check of each commit must not hang on what another daemon does.
func Compare(suite string, stock, ours *Run, known []Entry, narrowed bool) *Summary {
	s := &Summary{Suite: suite, Sides: map[Side]Numbers{Stock: stock.numbers(), Ours: ours.numbers()}}
	for side, run := range map[Side]*Run{Stock: stock, Ours: ours} {
		for _, e := range run.Errors {
			s.fail("%s: %s", side, e)
		}
	}
	listed := map[string]Entry{}
	for _, e := range known {
		listed[e.Name] = e
	}
	a, b := stock.byName(), ours.byName()
	for _, name := range names(a, b) {
		e, ok := listed[name]
		delete(listed, name)
		if narrowed && name == Leftovers && outcome(a, name) == Pass && outcome(b, name) == Pass {
			continue // what leaves something may not have run
		}
		s.judge(name, outcome(a, name), outcome(b, name), e, ok, narrowed)
	}
	for _, e := range known {
		if _, absent := listed[e.Name]; absent && !narrowed {
			s.fail("%s is listed as known (%s), and no test is called so", e.Name, e.Kind)
		}
	}
	if len(a) == 0 && len(b) == 0 {
		s.fail("no test ran")
	}
	return s
}

// judge looks at one test.
func (s *Summary) judge(name string, stock, ours Outcome, e Entry, known, narrowed bool) {
	line := Line{Name: name, Stock: stock, Ours: ours, Kind: e.Kind, Reason: e.Reason}
	switch {
	case stock != ours:
		s.Differ = append(s.Differ, line)
	case stock == Fail:
		s.Failed = append(s.Failed, line)
	}
	switch {
	case stock == Skip && ours == Skip: // this machine cannot run it, which proves nothing of a list
	case !known && narrowed && stock == Fail && ours == Pass:
	case known && !e.Kind.allows(stock, ours):
		s.fail("%s is listed as known (%s): stock %s, ours %s", name, e.Kind, stock, ours)
	case !known && (stock != ours || stock == Fail):
		s.fail("%s: stock %s, ours %s, and it is not listed", name, stock, ours)
	}
}

func (s *Summary) fail(format string, args ...any) {
	s.Errors = append(s.Errors, fmt.Sprintf(format, args...))
}

func outcome(tests map[string]Test, name string) Outcome {
	if t, ok := tests[name]; ok {
		return t.Outcome
	}
	return Absent
}

func (r *Run) numbers() Numbers {
	n := Numbers{Seconds: r.Seconds}
	for _, t := range r.byName() {
		switch t.Outcome {
		case Pass:
			n.Passed++
		case Fail:
			n.Failed++
		case Skip:
			n.Skipped++
		}
	}
	return n
}
