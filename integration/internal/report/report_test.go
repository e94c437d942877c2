// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"image/png"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSummarize(t *testing.T) {
	for name, c := range map[string]struct {
		samples []float64
		want    Summary
	}{
		"none":             {nil, Summary{}},
		"one":              {[]float64{3}, Summary{3, 3, 3, 1}},
		"two":              {[]float64{4, 2}, Summary{3, 2.5, 3.5, 2}},
		"odd, unsorted":    {[]float64{5, 1, 4, 2, 3}, Summary{3, 2, 4, 5}},
		"even":             {[]float64{1, 2, 3, 4}, Summary{2.5, 1.75, 3.25, 4}},
		"an outlier":       {[]float64{1, 1, 1, 1, 1000}, Summary{1, 1, 1, 5}},
		"below zero, too":  {[]float64{-1, 0, 1}, Summary{0, -0.5, 0.5, 3}},
		"all of one value": {[]float64{7, 7, 7, 7}, Summary{7, 7, 7, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			before := append([]float64(nil), c.samples...)
			require.Equal(t, c.want, Summarize(c.samples))
			require.Equal(t, before, c.samples, "the samples are the caller's")
		})
	}
}

func TestDifferences(t *testing.T) {
	require.Equal(t, []float64{9, 18}, Differences([]float64{10, 20, 30}, []float64{1, 2}))
	require.Empty(t, Differences(nil, []float64{1}))
}

func TestRatio(t *testing.T) {
	var r Row
	_, ok := r.Ratio(Ours, Stock)
	require.False(t, ok, "nothing was measured")
	r.Samples = [sides][]float64{Stock: {10, 30, 20}, Ours: {5}, Bare: {0}}
	ratio, ok := r.Ratio(Ours, Stock)
	require.True(t, ok)
	require.InDelta(t, 0.25, ratio, 1e-9)
	_, ok = r.Ratio(Ours, Bare)
	require.False(t, ok, "of nothing there is no multiple")
}

func TestNumber(t *testing.T) {
	for text, v := range map[string]float64{
		"0": 0, "3": 3, "0.014": 0.0138, "0.22": 0.2154, "8.01": 8.012, "48.5": 48.49, "2003": 2003.2, "-0.56": -0.557,
		"1.00": 0.9999, "52431": 52431.4,
	} {
		require.Equal(t, text, number(v))
	}
}

// example is a small report with everything in it that is shown in a way of its own.
func example() *Results {
	r := &Results{
		Machine: Machine{
			When: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), CPU: "CPU", Cores: 2, Memory: "8 GiB", Kernel: "6.1",
			Cgroups:    "cgroup v2",
			Filesystem: "tmpfs", Load: "0.1", Stock: "2.4.2", Ours: "2.4.2+x", Runc: "runc 1.5", Go: "go1",
		},
		About: []string{"How it was done."},
	}
	up := r.Add(Row{Section: "Time", Name: "create", Unit: "ms", Brief: "create", Chart: "time", Label: "create"})
	up.Samples = [sides][]float64{{10, 20, 30}, {5, 5, 5}, {2}}
	over := r.Add(Row{Section: "Time", Name: "over", Unit: "ms", Chart: "time", Label: "over",
		Notes: []string{"Once."}})
	over.Samples = [sides][]float64{Stock: Differences(up.Samples[Stock], []float64{2, 2, 2}), Ours: {3}}
	all := Row{Section: "Rate", Name: "all", Unit: "/s", More: true, Brief: "all", Chart: "rate", Label: "8",
		Notes: []string{"Twice."}}
	r.Add(all).Sample(Ours, 1500)
	return r
}

func TestMarkdown(t *testing.T) {
	require.Equal(t, `# Benchmark

How it was done.

- Machine: CPU, 2 cores, 8 GiB of memory; Linux 6.1, cgroup v2; state, root and bundles on tmpfs; load average before: 0.1
- containerd 2.4.2, Shimyard 2.4.2+x, runc 1.5, go1
- Measured on 2026-01-02

![plot](p.png)

## Time

| | stock containerd | Shimyard | bare runc | Shimyard ÷ stock | Shimyard ÷ bare runc |
|---|---:|---:|---:|---:|---:|
| create | 20 ms (15–25) | 5 ms | 2 ms | 0.25 × | 2.50 × |
| over [1] | 18 ms (13–23) | 3 ms |  | 0.17 × |  |

## Rate

| | stock containerd | Shimyard | bare runc | Shimyard ÷ stock | Shimyard ÷ bare runc |
|---|---:|---:|---:|---:|---:|
| all (more is better) [2] |  | 1500 /s |  |  |  |

[1] Once.

[2] Twice.
`, example().Markdown("p.png"))
}

func TestBriefTableHasItsOwnNotes(t *testing.T) {
	brief := example().Brief()
	require.NotContains(t, brief, "over")
	require.NotContains(t, brief, "Once.")
	require.Contains(t, brief, "all (more is better) [1]")
	require.True(t, strings.HasSuffix(brief, "\n[1] Twice.\n"), brief)
	require.Contains(t, example().Table(), "over [1]")
}

func TestReplace(t *testing.T) {
	got, err := Replace("a\n"+Begin+"\nold\n"+End+"\nb\n", "new\n\n")
	require.NoError(t, err)
	require.Equal(t, "a\n"+Begin+"\nnew\n"+End+"\nb\n", got)
	for _, document := range []string{"", Begin, End, End + Begin} {
		_, err := Replace(document, "new")
		require.Error(t, err, "%q", document)
	}
}

func TestPlot(t *testing.T) {
	panels := []Panel{{Chart: "time", Title: "Time", Log: true}, {Chart: "rate", Title: "Rate"},
		{Chart: "nothing", Title: "Nothing"}}
	var buf bytes.Buffer
	require.NoError(t, example().Plot(&buf, panels))
	picture, err := png.Decode(&buf)
	require.NoError(t, err)
	require.Greater(t, picture.Bounds().Dx(), picture.Bounds().Dy(), "two panels side by side")
	require.Error(t, example().Plot(&buf, panels[2:]), "nothing to draw")
}

func TestLogPanelBeginsBelowTheLowest(t *testing.T) {
	p := Panel{Log: true}
	rows := example().of("time")
	require.InDelta(t, 0, p.floor(rows), 1e-9, "2 is the lowest")
	scale := p.scale(rows)
	require.InDelta(t, 2, scale(100), 1e-9)
	require.Zero(t, scale(0.5), "no bar goes below the axis")
	ticks := powers{unscaled: func(v float64) float64 { return v }}.Ticks(0, 2.5)
	require.Len(t, ticks, 3)
	require.Equal(t, "100", ticks[2].Label)
}
