// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package results

import (
	"strings"

	"github.com/pkg/errors"
)

// Kind says how a known test behaves.
type Kind string

// The kinds. All but the flaky ones are held to: a test that behaves better than its kind makes the comparison fail,
// so that no list grows stale.
const (
	// FailsOurs fails with ours and passes with stock, on purpose.
	FailsOurs Kind = "ours"
	// FailsStock fails with stock and passes with ours.
	FailsStock Kind = "stock"
	// FailsBoth fails with either: the machine, or the test, is to blame.
	FailsBoth Kind = "both"
	// Alike ends alike with stock and ours, in a way that depends on the machine.
	Alike Kind = "alike"
	// FlakyBoth may fail with either; it was seen to fail with stock.
	FlakyBoth Kind = "flaky"
	// FlakyStock may fail with stock, and passes with ours.
	FlakyStock Kind = "flaky-stock"
)

// Entry is one line of a list.
type Entry struct {
	Name   string
	Kind   Kind
	Reason string
}

// ParseKnown reads a list. A line is a kind, a name and a reason, between them " | ". Empty lines and those that
// begin with # do not count.
func ParseKnown(text string) ([]Entry, error) {
	var list []Entry
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.SplitN(line, " | ", 3)
		if len(f) != 3 || strings.TrimSpace(f[2]) == "" {
			return nil, errors.Errorf("line %d: want \"kind | name | reason\", have %q", n, line)
		}
		e := Entry{Kind: Kind(strings.TrimSpace(f[0])), Name: strings.TrimSpace(f[1]), Reason: strings.TrimSpace(f[2])}
		switch e.Kind {
		case FailsOurs, FailsStock, FailsBoth, Alike, FlakyBoth, FlakyStock:
		default:
			return nil, errors.Errorf("line %d: no kind is called %q", n, e.Kind)
		}
		if seen[e.Name] {
			return nil, errors.Errorf("line %d: %s is listed twice", n, e.Name)
		}
		seen[e.Name] = true
		list = append(list, e)
	}
	return list, nil
}

// allows reports whether the outcomes with stock and with ours are those of the kind.
func (k Kind) allows(stock, ours Outcome) bool {
	switch k {
	case FailsOurs:
		return stock == Pass && ours == Fail
	case FailsStock:
		return stock == Fail && ours == Pass
	case FailsBoth:
		return stock == Fail && ours == Fail
	case Alike:
		return stock == ours && stock != Absent
	case FlakyStock:
		return (stock == Pass || stock == Fail) && ours == Pass
	default:
		return (stock == Pass || stock == Fail) && (ours == Pass || ours == Fail)
	}
}
