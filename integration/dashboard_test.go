// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/report"
)

// drawEnv names the file that the dashboard is drawn into.
const drawEnv = "SHIMYARD_DASHBOARD"

// dashboard is as much of Grafana's JSON as is drawn.
type dashboard struct {
	Panels []struct {
		Type, Title string
		GridPos     struct{ X, Y, W, H int }
		FieldConfig struct{ Defaults struct{ Unit string } }
		Targets     []struct{ Expr, LegendFormat string }
	}
}

// TestDrawDashboard draws hack/monitoring/dashboard.json over some minutes of a daemon's life, with Prometheus in
// between, as Grafana would.
func TestDrawDashboard(t *testing.T) {
	path := os.Getenv(drawEnv)
	if path == "" {
		t.Skipf("takes some minutes; make dashboard runs it (%s=FILE)", drawEnv)
	}
	needRoot(t)
	data, err := os.ReadFile(filepath.Join(kit.Module, "..", "hack", "monitoring", "dashboard.json"))
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(data, &d))
	address := freeAddress(t)
	n := newNode(t, withMetrics(address))
	p := startPrometheus(t, n, address)
	begin := time.Now()
	n.liveABit(address)
	end := time.Now()

	var graphs []report.Graph
	for _, panel := range d.Panels {
		if panel.Type == "row" {
			continue
		}
		g := report.Graph{Title: panel.Title, Unit: panel.FieldConfig.Defaults.Unit, Grid: report.Grid(panel.GridPos),
			Single: panel.Type == "stat"}
		for _, target := range panel.Targets {
			g.Series = append(g.Series, p.query(target.Expr, target.LegendFormat, begin, end)...)
		}
		graphs = append(graphs, g)
	}
	var png bytes.Buffer
	require.NoError(t, report.Dashboard(&png, begin, graphs))
	require.NoError(t, os.WriteFile(path, png.Bytes(), 0o644))
}

// liveABit is what the dashboard shows: containers that come and go, a create that fails, shims that stall, one that
// dies, a restart.
func (n *node) liveABit(address string) {
	for i := range 4 {
		n.run(fmt.Sprint("long-", i), forever())
	}
	for round := range 4 {
		for i := range 10 {
			n.run(fmt.Sprintf("job-%d-%d", round, i), forever()).finish()
			time.Sleep(300 * time.Millisecond)
		}
		switch round {
		case 0:
			b := n.create("bad", spec("/no/such/thing"))
			_, err := b.NewTask(n.ctx, cio.NullIO)
			require.Error(n.t, err)
			b.remove()
		case 1:
			stalled := []int{n.stall("long-0"), n.stall("long-1")}
			defer resume(stalled)
			for _, id := range []string{"long-0", "long-1"} {
				_, err := n.taskOf(id).Pids(n.ctx)
				require.Error(n.t, err)
			}
		case 2:
			n.Stop()
			n.Run()
			scrape(n.t, address)
			e := n.taskOf("long-3").waiting()
			require.NoError(n.t, unix.Kill(n.shimPid(testNS, "long-3"), unix.SIGKILL))
			e.code()
			n.boxOf("long-3").remove()
		}
	}
	resume([]int{n.shimPid(testNS, "long-0"), n.shimPid(testNS, "long-1")})
	for _, id := range []string{"long-0", "long-1", "long-2"} {
		n.answers(id).finish()
	}
}

// prometheus is a server that scrapes a daemon every second.
type prometheus struct {
	t      *testing.T
	url    string
	client *http.Client
}

func startPrometheus(t *testing.T, n *node, target string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `global: {scrape_interval: 1s}
scrape_configs:
- job_name: containerd
  metrics_path: /v1/metrics
  static_configs: [{targets: ['%s'], labels: {cluster: demo}}]
`, target), 0o600))
	p := &prometheus{t: t, url: "http://" + freeAddress(t),
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	cmd := exec.Command(tool(t, kit.Prometheus), "--config.file="+config,
		"--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+strings.TrimPrefix(p.url, "http://"), "--log.level=error")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	})
	require.Eventually(t, func() bool {
		series := p.query("shimyard_info", "", time.Now().Add(-5*time.Second), time.Now())
		return len(series) > 0
	}, patience, 10*tick, "Prometheus has no metrics of the daemon")
	return p
}

var (
	variable  = regexp.MustCompile(`\$(cluster|instance)`)
	reference = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)
)

// query evaluates an expression of the dashboard over a span of time. Until there is a server there is nothing.
func (p *prometheus) query(expr, legend string, begin, end time.Time) (found []report.Series) {
	p.t.Helper()
	expr = variable.ReplaceAllString(strings.ReplaceAll(expr, "$__rate_interval", "10s"), ".*")
	r, err := p.client.Get(p.url + "/api/v1/query_range?" + url.Values{
		"query": {expr}, "step": {"1"},
		"start": {strconv.FormatInt(begin.Unix(), 10)}, "end": {strconv.FormatInt(end.Unix(), 10)},
	}.Encode())
	if err != nil {
		return nil
	}
	defer r.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
	}
	if json.NewDecoder(r.Body).Decode(&answer) != nil {
		return nil
	}
	require.Empty(p.t, answer.Error, expr)
	for _, series := range answer.Data.Result {
		s := report.Series{Name: reference.ReplaceAllStringFunc(legend, func(ref string) string {
			return series.Metric[reference.FindStringSubmatch(ref)[1]]
		})}
		for _, v := range series.Values {
			at, _ := v[0].(float64)
			value, err := strconv.ParseFloat(fmt.Sprint(v[1]), 64)
			require.NoError(p.t, err)
			s.At, s.Values = append(s.At, time.UnixMilli(int64(at*1000))), append(s.Values, value)
		}
		found = append(found, s)
	}
	return found
}
