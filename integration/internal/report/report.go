// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package report holds what a benchmark has measured and shows it, as a table
// in Markdown and as a plot.
//
// It knows nothing of how a thing is measured: it takes samples, and what it
// shows follows from them alone. It owns no file and starts nothing.
package report

import "time"

// Side is one of those that do the same work.
type Side int

const (
	Stock Side = iota // containerd as its own project builds it
	Ours              // containerd with this runtime
	Bare              // runc without a daemon
	sides
)

// String is what people call it.
func (s Side) String() string { return names[s] }

var names = [sides]string{"stock containerd", "Shimyard", "bare runc"}

// Results are what one run has measured.
type Results struct {
	Machine Machine
	// About says what was measured and how, a paragraph each.
	About []string
	Rows  []*Row
}

// Machine is what the numbers depend on besides the code.
type Machine struct {
	When       time.Time
	CPU        string
	Cores      int
	Memory     string
	Kernel     string
	Cgroups    string
	Filesystem string
	Load       string // its average over a minute, before
	Stock      string // the version of the stock daemon
	Ours       string // the version of the other
	Runc       string
	Go         string
}

// Row is one quantity, measured on each side for which there are samples.
type Row struct {
	Section string
	Name    string
	Unit    string // of the samples; empty: a count
	// More tells that more is better; else less is.
	More bool
	// Brief is the name of the row in the short table, where there are no sections; "": it is not there.
	Brief string
	// Chart is the panel of the plot that shows the row, Label its name there.
	// Empty: none does.
	Chart, Label string
	// Notes are said below the table.
	Notes   []string
	Samples [sides][]float64
}

// Add appends a row and returns it.
func (r *Results) Add(row Row) *Row {
	r.Rows = append(r.Rows, &row)
	return &row
}

// Sample adds one measurement.
func (r *Row) Sample(s Side, value float64) { r.Samples[s] = append(r.Samples[s], value) }

// Has tells whether the side was measured.
func (r *Row) Has(s Side) bool { return len(r.Samples[s]) > 0 }

// Ratio of the medians of two sides; false where one was not measured, or the
// second is not above zero.
func (r *Row) Ratio(of, to Side) (float64, bool) {
	if !r.Has(of) || !r.Has(to) {
		return 0, false
	}
	a, b := Summarize(r.Samples[of]).Median, Summarize(r.Samples[to]).Median
	if b <= 0 {
		return 0, false
	}
	return a / b, true
}
