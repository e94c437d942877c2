// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"
)

// step is the time between two scrapes, and between two evaluations of the rules.
const step = time.Minute

// scraped are series as Prometheus has them, a sample for each step. The lines are written as for promtool:
// `metric{label="x"} 0 0+1x10`, with _ for a scrape that
// did not have the series, and stale for the first such.
type scraped struct {
	series []storage.Series
	steps  int
}

type sample struct {
	at    int64
	value float64
}

func (s sample) T() int64                      { return s.at }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.value }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

func scrape(t *testing.T, lines ...string) *scraped {
	t.Helper()
	all := &scraped{}
	for _, line := range lines {
		lset, values, err := parser.NewParser(parser.Options{}).ParseSeriesDesc(line)
		require.NoError(t, err, line)
		var samples []chunks.Sample
		for n, v := range values {
			if !v.Omitted {
				samples = append(samples, sample{time.Duration(n * int(step)).Milliseconds(), v.Value})
			}
		}
		all.series = append(all.series, storage.NewListSeries(lset, samples))
		all.steps = max(all.steps, len(values))
	}
	return all
}

func (s *scraped) Querier(int64, int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: s.choose}, nil
}

func (s *scraped) choose(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	found := &seriesSet{at: -1}
	for _, one := range s.series {
		fits := true
		for _, m := range matchers {
			fits = fits && m.Matches(one.Labels().Get(m.Name))
		}
		if fits {
			found.series = append(found.series, one)
		}
	}
	return found
}

type seriesSet struct {
	series []storage.Series
	at     int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.series) }
func (s *seriesSet) At() storage.Series                { return s.series[s.at] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// fires tells whether an alert fires at some time: its expression holds for as long as the rule says.
func fires(t *testing.T, r rulefmt.Rule, s *scraped) bool {
	t.Helper()
	e := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute,
		Parser: parser.NewParser(parser.Options{})})
	held := 0
	for n := range s.steps {
		q, err := e.NewInstantQuery(context.Background(), s, nil, r.Expr, time.Unix(0, 0).Add(time.Duration(n)*step))
		require.NoError(t, err)
		result := q.Exec(context.Background())
		require.NoError(t, result.Err, r.Alert)
		v, err := result.Vector()
		require.NoError(t, err)
		q.Close()
		if len(v) == 0 {
			held = 0
			continue
		}
		if held++; time.Duration(held-1)*step >= time.Duration(r.For) {
			return true
		}
	}
	return false
}

// quantiles are the buckets of a histogram to which each scrape adds that many observations up to 5 s, and above.
func quantiles(below, above string) []string {
	const name = `shimyard_create_duration_seconds_bucket{instance="a",runtime="io.containerd.runc.v2",source="start",le="`
	return []string{name + `5"} 0+` + below + `x40`, name + `10"} 0+` + above + `x40`, name + `+Inf"} 0+` + above + `x40`}
}

// alarms has for each alert what it is for, and what must not set it off.
var alarms = []struct {
	alert, what string
	fires       bool
	series      []string
}{
	{"ShimUnresponsive", "a shim is silent for good", true,
		[]string{`shimyard_unresponsive_oldest_seconds{instance="a"} 0 0+60x20`}},
	{"ShimUnresponsive", "it answers after 6 minutes", false,
		[]string{`shimyard_unresponsive_oldest_seconds{instance="a"} 0 0+60x6 0x20`}},
	{"ManyShimsUnresponsive", "8 of 40", true, []string{`shimyard_processes{instance="a",state="unresponsive"} 8x10`,
		`shimyard_processes{instance="a",state="connected"} 32x10`}},
	{"ManyShimsUnresponsive", "8 of 400", false, []string{`shimyard_processes{instance="a",state="unresponsive"} 8x10`,
		`shimyard_processes{instance="a",state="connected"} 392x10`}},
	{"ManyShimsUnresponsive", "3 of 4", false, []string{`shimyard_processes{instance="a",state="unresponsive"} 3x10`,
		`shimyard_processes{instance="a",state="connected"} 1x10`}},
	{"ManyShimsUnresponsive", "8 of one node, 400 of another", true,
		[]string{`shimyard_processes{instance="a",state="unresponsive"} 8x10`,
			`shimyard_processes{instance="b",state="connected"} 400x10`}},
	{"CleanupStuck", "for good", true, []string{`shimyard_cleanup_oldest_seconds{instance="a"} 0+60x30`}},
	{"CleanupStuck", "for 10 minutes", false, []string{`shimyard_cleanup_oldest_seconds{instance="a"} 0+60x10 0x20`}},
	{"CreateFailures", "the first creates of a daemon fail, and all after them", true,
		[]string{`shimyard_creates_total{instance="a",result="failed",source="start"} 0 0 2+2x20`,
			`shimyard_creates_total{instance="a",result="ok",source="start"} 0x22`}},
	{"CreateFailures", "a burst of ten among as many that succeed", true,
		[]string{`shimyard_creates_total{instance="a",result="failed",source="start"} 0 0 0 10x20`,
			`shimyard_creates_total{instance="a",result="ok",source="start"} 100x3 110x20`}},
	{"CreateFailures", "one in a hundred", false,
		[]string{`shimyard_creates_total{instance="a",result="failed",source="start"} 0+1x30`,
			`shimyard_creates_total{instance="a",result="ok",source="start"} 0+99x30`}},
	{"CreateFailures", "three on an idle node", false,
		[]string{`shimyard_creates_total{instance="a",result="failed",source="start"} 0 0 3x20`,
			`shimyard_creates_total{instance="a",result="ok",source="start"} 0x22`}},
	{"CreateSlow", "one in ten takes longer than 5 s", true, quantiles("9", "10")},
	{"CreateSlow", "one in a hundred", false, quantiles("99", "100")},
	{"ShimsDying", "the first deaths of a daemon, all at once", true,
		[]string{`shimyard_deaths_total{instance="a",proof="pid",runtime="io.containerd.runc.v2"} 0 0 3x5`,
			`shimyard_deaths_total{instance="a",proof="address",runtime="io.containerd.runc.v2"} 0x7`}},
	{"ShimsDying", "by different proofs", true, []string{`shimyard_deaths_total{instance="a",proof="pid"} 7 7 9x5`,
		`shimyard_deaths_total{instance="a",proof="address"} 0 0 1x5`}},
	{"ShimsDying", "one", false, []string{`shimyard_deaths_total{instance="a",proof="pid"} 7 7 8x5`}},
	{"ShimsDying", "three in an hour", false,
		[]string{`shimyard_deaths_total{instance="a",proof="pid"} 0x5 1x20 2x20 3x20`}},
	{"RestoreUnsettled", "for good", true, []string{`shimyard_instances{instance="a",state="restoring"} 3x10`}},
	{"RestoreUnsettled", "after a start", false,
		[]string{`shimyard_instances{instance="a",state="restoring"} 30 20 1 stale _x9`,
			`shimyard_instances{instance="a",state="running"} 0 10 29 30x10`}},
	{"LaunchBacklog", "for good", true, []string{`shimyard_launch_queue{instance="a"} 30x10`}},
	{"LaunchBacklog", "a storm of creates", false, []string{`shimyard_launch_queue{instance="a"} 0 90 40 10 0x10`}},
	{"NotRunning", "a stock binary", true, []string{`up{instance="a",job="containerd"} 1x20`}},
	{"NotRunning", "on one node of two", true, []string{`up{instance="a",job="containerd"} 1x20`,
		`up{instance="b",job="containerd"} 1x20`, `shimyard_info{instance="b"} 1x20`}},
	{"NotRunning", "a daemon of ours", false, []string{`up{instance="a",job="containerd"} 1x20`,
		`shimyard_info{instance="a"} 1x20`}},
	{"NotRunning", "another job", false, []string{`up{instance="a",job="node"} 1x20`}},
	{"NotRunning", "a node that is down", false, []string{`up{instance="a",job="containerd"} 0x20`}},
}

// TestAlarms: each alert fires at what it is for, and at nothing less.
func TestAlarms(t *testing.T) {
	groups, errs := rulefmt.ParseFile("shimyard.rules.yaml", false, model.UTF8Validation,
		parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	require.Empty(t, errs)
	rules, names := make(map[string]rulefmt.Rule), known(t)
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			rules[r.Alert] = r
		}
	}
	proven := make(map[string]bool)
	for _, c := range alarms {
		require.Contains(t, rules, c.alert)
		for _, line := range c.series {
			check(t, names, strings.Split(line, "} ")[0]+"}") // which the code can have
		}
		require.Equal(t, c.fires, fires(t, rules[c.alert], scrape(t, c.series...)), "%s: %s", c.alert, c.what)
		proven[c.alert] = proven[c.alert] || c.fires
	}
	for alert := range rules {
		require.True(t, proven[alert], "nothing sets off %s", alert)
	}
}
