// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package results

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func run(outcomes map[string]Outcome) *Run {
	var r Run
	for name, o := range outcomes {
		r.Tests = append(r.Tests, Test{Name: name, Outcome: o})
	}
	return &r
}

func TestCompare(t *testing.T) {
	for name, c := range map[string]struct {
		stock, ours Outcome // "" for a test that did not run
		kind        Kind    // "" for one that is not listed
		narrowed    bool
		err         string
	}{
		"both pass": {stock: Pass, ours: Pass},
		"both skip": {stock: Skip, ours: Skip},
		"ours fails": {stock: Pass, ours: Fail,
			err: "TestX: stock pass, ours fail, and it is not listed"},
		"ours skips": {stock: Pass, ours: Skip,
			err: "TestX: stock pass, ours skip, and it is not listed"},
		"ours has no such test": {stock: Pass, err: "TestX: stock pass, ours absent, and it is not listed"},
		"stock fails": {stock: Fail, ours: Pass,
			err: "TestX: stock fail, ours pass, and it is not listed"},
		"only stock fails, of some": {stock: Fail, ours: Pass, narrowed: true},
		"both fail, of some": {stock: Fail, ours: Fail, narrowed: true,
			err: "TestX: stock fail, ours fail, and it is not listed"},
		"both fail": {stock: Fail, ours: Fail,
			err: "TestX: stock fail, ours fail, and it is not listed"},
		"ours fails, listed": {stock: Pass, ours: Fail, kind: FailsOurs},
		"ours fails, listed, and passes": {stock: Pass, ours: Pass, kind: FailsOurs,
			err: "TestX is listed as known (ours): stock pass, ours pass"},
		"ours fails, listed, stock as well": {stock: Fail, ours: Fail, kind: FailsOurs,
			err: "TestX is listed as known (ours): stock fail, ours fail"},
		"stock fails, listed": {stock: Fail, ours: Pass, kind: FailsStock},
		"stock fails, listed, and passes": {stock: Pass, ours: Pass, kind: FailsStock,
			err: "TestX is listed as known (stock): stock pass, ours pass"},
		"both fail, listed": {stock: Fail, ours: Fail, kind: FailsBoth},
		"both fail, listed, ours passes": {stock: Fail, ours: Pass, kind: FailsBoth,
			err: "TestX is listed as known (both): stock fail, ours pass"},
		"both fail, listed, both skip":   {stock: Skip, ours: Skip, kind: FailsBoth},
		"stock fails, listed, both skip": {stock: Skip, ours: Skip, kind: FailsStock},
		"stock fails, listed, and skips": {stock: Skip, ours: Pass, kind: FailsStock,
			err: "TestX is listed as known (stock): stock skip, ours pass"},
		"alike, both fail": {stock: Fail, ours: Fail, kind: Alike},
		"alike, both skip": {stock: Skip, ours: Skip, kind: Alike},
		"alike, ours fails": {stock: Pass, ours: Fail, kind: Alike,
			err: "TestX is listed as known (alike): stock pass, ours fail"},
		"flaky, ours fails":             {stock: Pass, ours: Fail, kind: FlakyBoth},
		"flaky, both pass":              {stock: Pass, ours: Pass, kind: FlakyBoth},
		"flaky with stock, stock fails": {stock: Fail, ours: Pass, kind: FlakyStock},
		"flaky with stock, ours fails": {stock: Pass, ours: Fail, kind: FlakyStock,
			err: "TestX is listed as known (flaky-stock): stock pass, ours fail"},
		"listed, and gone": {kind: FlakyBoth,
			err: "TestX is listed as known (flaky), and no test is called so"},
		"listed, and not chosen": {kind: FlakyBoth, narrowed: true},
	} {
		t.Run(name, func(t *testing.T) {
			stock, ours := map[string]Outcome{"TestOther": Pass}, map[string]Outcome{"TestOther": Pass}
			if c.stock != "" {
				stock["TestX"] = c.stock
			}
			if c.ours != "" {
				ours["TestX"] = c.ours
			}
			var known []Entry
			if c.kind != "" {
				known = []Entry{{Name: "TestX", Kind: c.kind, Reason: "because"}}
			}
			s := Compare("suite", run(stock), run(ours), known, c.narrowed)
			if c.err == "" {
				require.Empty(t, s.Errors)
			} else {
				require.Equal(t, []string{c.err}, s.Errors)
			}
		})
	}
}

func TestCompareTellsOfRunsThatAreNone(t *testing.T) {
	s := Compare("suite", &Run{Errors: []string{"it crashed"}}, &Run{}, nil, false)
	require.ElementsMatch(t, []string{"stock: it crashed", "no test ran"}, s.Errors)
}

func TestCompareHoldsLeftoversToTheListInWholeRunsOnly(t *testing.T) {
	known := []Entry{{Name: Leftovers, Kind: FailsStock, Reason: "it leaks"}}
	clean := run(map[string]Outcome{Leftovers: Pass})
	require.Empty(t, Compare("s", clean, clean, known, true).Errors)
	require.NotEmpty(t, Compare("s", clean, clean, known, false).Errors)
	require.NotEmpty(t, Compare("s", clean, run(map[string]Outcome{Leftovers: Fail}), known, true).Errors)
}

func TestCompareTakesTheWorstOfARepeatedTest(t *testing.T) {
	stock := &Run{Tests: []Test{{Name: "T", Outcome: Pass}, {Name: "T", Outcome: Fail}, {Name: "T", Outcome: Pass}}}
	s := Compare("suite", stock, run(map[string]Outcome{"T": Pass}), nil, false)
	require.Equal(t, Numbers{Failed: 1}, s.Sides[Stock])
	require.Equal(t, []Line{{Name: "T", Stock: Fail, Ours: Pass}}, s.Differ)
}

func TestParseKnown(t *testing.T) {
	list, err := ParseKnown("# comment\n\nours | TestA/b c | one | two\nflaky | TestB | slow\n")
	require.NoError(t, err)
	require.Equal(t, []Entry{{"TestA/b c", FailsOurs, "one | two"}, {"TestB", FlakyBoth, "slow"}}, list)
	for text, want := range map[string]string{
		"ours | TestA":                           "line 1: want",
		"ours | TestA | ":                        "line 1: want",
		"\nnever | TestA | why":                  "line 2: no kind is called",
		"ours | TestA | why\nboth | TestA | why": "line 2: TestA is listed twice",
	} {
		_, err := ParseKnown(text)
		require.ErrorContains(t, err, want)
	}
}

func TestMarkdownNamesWhatDiffersWithItsReason(t *testing.T) {
	known := []Entry{{Name: "TestX", Kind: FailsOurs, Reason: "told once"}}
	s := Compare("client", run(map[string]Outcome{"TestX": Pass, "TestY": Skip}),
		run(map[string]Outcome{"TestX": Fail, "TestY": Skip}), known, false)
	s.About = "a suite"
	text := Markdown([]*Summary{s})
	require.Contains(t, text, "| client | a suite | 1, 0, 1 | 0, 1, 1 |\n")
	require.Contains(t, text, "- client: `TestX`: stock pass, Shimyard fail. told once\n")
	doc, ok := Replace("a\n"+Begin+"\nold\n"+End+"\nb\n", text)
	require.True(t, ok)
	require.NotContains(t, doc, "\nold\n")
	require.Contains(t, doc, "told once")
	_, ok = Replace("no marks", text)
	require.False(t, ok)
}
