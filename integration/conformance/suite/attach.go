// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/results"
)

const siteEnv = "SHIMYARD_SITE"

// wire is a site on its way into a test program.
type wire struct {
	Plan
	Side results.Side
	Out  string
}

func (s *Site) env() (string, error) {
	data, err := json.Marshal(wire{s.Plan, s.Side, s.Out})
	return siteEnv + "=" + string(data), errors.Wrap(err, "cannot tell a test where it runs")
}

// Attach is for tests of this module that run in a box, by Site.GoTest: it returns the site. Elsewhere, as with go
// test ./..., it skips the test. What such a test reports, it reports as a test does.
func Attach(tb testing.TB) *Site {
	tb.Helper()
	text := os.Getenv(siteEnv)
	if text == "" {
		tb.Skip("runs in a box only: make conformance-SUITE")
	}
	var w wire
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		tb.Fatalf("cannot read where the test runs: %v", err)
	}
	return NewSite(w.Plan, w.Side, w.Out)
}
