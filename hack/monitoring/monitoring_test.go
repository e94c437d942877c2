// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"encoding/json"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
)

// check parses a query and looks up every metric that it names, with its labels and what it wants of them. It returns
// the metrics.
func check(t require.TestingT, metrics map[string]metric, query string) (used []string) {
	e, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	require.NoError(t, err, query)
	known := make(map[string]bool) // labels of what is named
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			name := v.Name
			for _, m := range v.LabelMatchers {
				if m.Name == model.MetricNameLabel {
					name = m.Value
				}
			}
			require.Contains(t, metrics, name, "%s names %s, which the code does not make", query, name)
			used = append(used, name)
			for label := range metrics[name] {
				known[label] = true
			}
			for _, m := range v.LabelMatchers {
				if m.Name != model.MetricNameLabel {
					metrics[name].check(t, m, query)
				}
			}
		}
		return nil
	})
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		for _, label := range grouping(n) {
			require.True(t, known[label], "%s groups by %s, which nothing in it has", query, label)
		}
		return nil
	})
	return used
}

func grouping(n parser.Node) []string {
	switch n := n.(type) {
	case *parser.AggregateExpr:
		return n.Grouping
	case *parser.BinaryExpr:
		if n.VectorMatching != nil {
			return n.VectorMatching.MatchingLabels
		}
	}
	return nil
}

// check: the label is one of the metric's, and what is wanted of it is something that the code can say.
func (m metric) check(t require.TestingT, want *labels.Matcher, query string) {
	require.Contains(t, m, want.Name, "%s: the metric has no such label", query)
	values := m[want.Name]
	if len(values) == 0 {
		return
	}
	matched := 0
	for _, v := range values {
		if want.Matches(v) {
			matched++
		}
	}
	require.Positive(t, matched, "%s: %s is nothing that the code says", query, want)
	require.Less(t, matched, len(values), "%s: %s excludes nothing that the code says", query, want)
}

func TestRules(t *testing.T) {
	groups, errs := rulefmt.ParseFile("shimyard.rules.yaml", false, model.UTF8Validation,
		parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	require.Empty(t, errs)
	docs, err := os.ReadFile("../../.github/docs/alerts.md")
	require.NoError(t, err)
	names, seen := known(t), 0
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			seen++
			check(t, names, r.Expr)
			require.Regexp(t, `^([A-Z][a-z]+)+$`, r.Alert)
			require.Contains(t, []string{"warning", "critical"}, r.Labels["severity"])
			require.NotEmpty(t, r.Annotations["summary"])
			require.NotEmpty(t, r.Annotations["description"])
			require.True(t, strings.HasSuffix(r.Annotations["runbook_url"],
				".github/docs/alerts.md#"+strings.ToLower(r.Alert)), r.Alert)
			require.Contains(t, string(docs), "\n## "+r.Alert+"\n", "the runbook has a chapter on it")
		}
	}
	require.GreaterOrEqual(t, seen, 9)
}

var legendLabel = regexp.MustCompile(`\{\{ *([a-z_]+) *\}\}`)

type panel struct {
	Title   string
	Targets []struct{ Expr, LegendFormat string }
}

// TestDashboard: every query parses, names metrics, labels and values that exist, and every metric of the code is on it.
func TestDashboard(t *testing.T) {
	data, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var d struct {
		Panels     []panel
		Templating struct{ List []struct{ Name string } }
	}
	require.NoError(t, json.Unmarshal(data, &d))
	variables := make([]string, 0, 3)
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	require.Equal(t, []string{"datasource", "cluster", "instance"}, variables)
	names, shown := known(t), map[string]bool{"shimyard_info": true}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			query := strings.NewReplacer("$__rate_interval", "5m", "$cluster", "c", "$instance",
				"i").Replace(target.Expr)
			for _, m := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
				require.Contains(t, target.Expr, m[1], "the legend has %s, which the query does not keep", m[0])
			}
			for _, name := range check(t, names, query) {
				shown[strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"),
					"_count")] = true
			}
		}
	}
	for name := range names {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		require.True(t, name == "up" || shown[base], "no panel shows %s", base)
	}
}
