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
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
)

// known are the names of the metrics that the code makes, with the suffixes of histograms.
func known(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{"up": true}
	for _, file := range []string{"metrics.go", "gauges.go"} {
		source, err := os.ReadFile("../../manager/internal/metrics/" + file)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`(gauge|counter|histogram|desc)\("([a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
			name := "shimyard_" + m[2]
			if m[1] != "histogram" {
				names[name] = true
				continue
			}
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				names[name+suffix] = true
			}
		}
	}
	require.Greater(t, len(names), 30)
	return names
}

// check parses a query and looks up every metric that it names. It returns those.
func check(t *testing.T, names map[string]bool, query string) (used []string) {
	t.Helper()
	e, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	require.NoError(t, err, query)
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			name := v.Name
			for _, m := range v.LabelMatchers {
				if m.Name == model.MetricNameLabel {
					name = m.Value
				}
			}
			require.True(t, names[name], "%s names %s, which the code does not make", query, name)
			used = append(used, name)
		}
		return nil
	})
	return used
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

type panel struct {
	Title   string
	Targets []struct{ Expr string }
}

// TestDashboard: every query parses, names metrics that exist, and every metric of the code is on it.
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
