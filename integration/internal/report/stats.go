// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"slices"
)

// Summary is the middle of some samples and how far the middle half of them is
// spread.
type Summary struct {
	Median, Low, High float64 // Low and High are the quartiles
	N                 int
}

// Summarize takes samples in any order and leaves them as they are. The zero
// Summary stands for none.
func Summarize(samples []float64) Summary {
	if len(samples) == 0 {
		return Summary{}
	}
	sorted := slices.Sorted(slices.Values(samples))
	return Summary{Median: quantile(sorted, 0.5), Low: quantile(sorted, 0.25), High: quantile(sorted, 0.75),
		N: len(sorted)}
}

// quantile interpolates between the two samples that are next to it.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	below := int(math.Floor(at))
	if below == len(sorted)-1 {
		return sorted[below]
	}
	part := at - float64(below)
	return sorted[below]*(1-part) + sorted[below+1]*part
}

// Differences of two series that were measured in pairs, one pair after the
// other; what one has beyond the other counts for nothing.
func Differences(a, b []float64) []float64 {
	n := min(len(a), len(b))
	d := make([]float64, n)
	for i := range n {
		d[i] = a[i] - b[i]
	}
	return d
}
