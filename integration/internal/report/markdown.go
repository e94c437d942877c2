// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"strings"

	"github.com/pkg/errors"
)

// Markdown is the whole report; plot is the name of the plot's file beside it.
func (r *Results) Markdown(plot string) string {
	var b strings.Builder
	b.WriteString("# Benchmark\n\n")
	for _, p := range r.About {
		fmt.Fprintf(&b, "%s\n\n", p)
	}
	b.WriteString(r.Machine.Markdown())
	fmt.Fprintf(&b, "\n![plot](%s)\n", plot)
	section := ""
	var notes []string
	for _, row := range r.Rows {
		if row.Section != section {
			section = row.Section
			fmt.Fprintf(&b, "\n## %s\n\n%s", section, head)
		}
		b.WriteString(row.markdown(row.Name, &notes))
	}
	b.WriteString(footnotes(notes))
	return b.String()
}

// Table is all rows in one table, Brief only the short ones; both with the
// notes.
func (r *Results) Table() string { return r.table(func(row *Row) string { return row.Name }) }

// Brief is the table of the rows that say most.
func (r *Results) Brief() string { return r.table(func(row *Row) string { return row.Brief }) }

// table has the rows that have a name in it.
func (r *Results) table(name func(*Row) string) string {
	var b strings.Builder
	b.WriteString(head)
	var notes []string
	for _, row := range r.Rows {
		if name := name(row); name != "" {
			b.WriteString(row.markdown(name, &notes))
		}
	}
	b.WriteString(footnotes(notes))
	return b.String()
}

const head = "| | stock containerd | Shimyard | bare runc | Shimyard ÷ stock | Shimyard ÷ bare runc |\n|---|---:|---:|---:|---:|---:|\n"

func (r *Row) markdown(name string, notes *[]string) string {
	if r.More {
		name += " (more is better)"
	}
	for _, note := range r.Notes {
		*notes = append(*notes, note)
		name += fmt.Sprintf(" [%d]", len(*notes))
	}
	cells := []string{name}
	for s := range sides {
		cells = append(cells, r.cell(s))
	}
	for _, to := range []Side{Stock, Bare} {
		cell := ""
		if ratio, ok := r.Ratio(Ours, to); ok {
			cell = number(ratio) + " ×"
		}
		cells = append(cells, cell)
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

// cell is the median with the quartiles, where there is a spread.
func (r *Row) cell(s Side) string {
	if !r.Has(s) {
		return ""
	}
	sum := Summarize(r.Samples[s])
	text := number(sum.Median)
	if r.Unit != "" {
		text += " " + r.Unit
	}
	if sum.Low != sum.High {
		text += fmt.Sprintf(" (%s–%s)", number(sum.Low), number(sum.High))
	}
	return text
}

func footnotes(notes []string) string {
	if len(notes) == 0 {
		return ""
	}
	var b strings.Builder
	for i, note := range notes {
		fmt.Fprintf(&b, "\n[%d] %s\n", i+1, note)
	}
	return b.String()
}

// number shows three digits that count, and never an exponent.
func number(v float64) string {
	abs := math.Abs(v)
	switch {
	case v == math.Trunc(v) && abs < 1e6, abs >= 100:
		return fmt.Sprintf("%.0f", v)
	case abs >= 10:
		return fmt.Sprintf("%.1f", v)
	case abs >= 0.1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

// Markdown is a list of what there is to know.
func (m *Machine) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b,
		"- Machine: %s, %d cores, %s of memory; Linux %s, %s; state, root and bundles on %s; load average before: %s\n",
		m.CPU, m.Cores, m.Memory, m.Kernel, m.Cgroups, m.Filesystem, m.Load)
	fmt.Fprintf(&b, "- containerd %s, Shimyard %s, %s, %s\n", m.Stock, m.Ours, m.Runc, m.Go)
	fmt.Fprintf(&b, "- Measured on %s\n", m.When.UTC().Format("2006-01-02"))
	return b.String()
}

// The marks between which Replace puts its text.
const (
	Begin = "<!-- benchmark: begin -->"
	End   = "<!-- benchmark: end -->"
)

// Replace puts text between the marks of a document that has both.
func Replace(document, text string) (string, error) {
	before, rest, begins := strings.Cut(document, Begin)
	_, after, ends := strings.Cut(rest, End)
	if !begins || !ends {
		return "", errors.Errorf("cannot put the benchmark into a document without %s and %s", Begin, End)
	}
	return before + Begin + "\n" + strings.TrimRight(text, "\n") + "\n" + End + after, nil
}
