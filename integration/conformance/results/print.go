// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package results

import (
	"fmt"
	"strings"
)

// String is what a person reads at the end of a run.
func (s *Summary) String() string {
	var b strings.Builder
	for _, side := range []Side{Stock, Ours} {
		n := s.Sides[side]
		fmt.Fprintf(&b, "%s, %-5s: %d passed, %d failed, %d skipped (%.0f s)\n", s.Suite, side, n.Passed, n.Failed,
			n.Skipped, n.Seconds)
	}
	section(&b, "differ", s.Differ)
	section(&b, "failed with both", s.Failed)
	for _, n := range s.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	for _, e := range s.Errors {
		fmt.Fprintf(&b, "ERROR: %s\n", e)
	}
	if len(s.Errors) == 0 {
		b.WriteString("as it should be\n")
	}
	return b.String()
}

func section(b *strings.Builder, title string, lines []Line) {
	for _, l := range lines {
		reason := "NOT LISTED"
		if l.Kind != "" {
			reason = fmt.Sprintf("known (%s): %s", l.Kind, l.Reason)
		}
		fmt.Fprintf(b, "%s: %s: stock %s, ours %s; %s\n", title, l.Name, l.Stock, l.Ours, reason)
	}
}

// Markdown is one table of all suites, and the tests that differ.
func Markdown(list []*Summary) string {
	var b strings.Builder
	b.WriteString("| suite | | stock: passed, failed, skipped | Shimyard: passed, failed, skipped |\n|---|---|---:|---:|\n")
	for _, s := range list {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", s.Suite, s.About, s.Sides[Stock].cell(), s.Sides[Ours].cell())
	}
	b.WriteString("\n")
	for _, s := range list {
		for _, l := range append(s.Differ[:len(s.Differ):len(s.Differ)], s.Failed...) {
			fmt.Fprintf(&b, "- %s: `%s`: stock %s, Shimyard %s. %s\n", s.Suite, l.Name, l.Stock, l.Ours, l.Reason)
		}
		for _, n := range s.Notes {
			fmt.Fprintf(&b, "- %s: %s\n", s.Suite, n)
		}
	}
	return b.String()
}

func (n Numbers) cell() string { return fmt.Sprintf("%d, %d, %d", n.Passed, n.Failed, n.Skipped) }

// The marks between which Replace puts its text.
const (
	Begin = "<!-- conformance: begin -->"
	End   = "<!-- conformance: end -->"
)

// Replace puts text between the marks of a document, or returns it unchanged and false if it does not have both.
func Replace(document, text string) (string, bool) {
	before, rest, begins := strings.Cut(document, Begin)
	_, after, ends := strings.Cut(rest, End)
	if !begins || !ends {
		return document, false
	}
	return before + Begin + "\n" + strings.TrimRight(text, "\n") + "\n" + End + after, true
}
