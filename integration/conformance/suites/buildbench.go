// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"time"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// buildBench times builds. Its figures are notes; that it runs is what is tested.
var buildBench = &suite.Suite{
	Name:    "buildbench",
	About:   "buildkitd " + buildkitd.Version + ": how long builds take",
	Timeout: 20 * time.Minute,
	Prepare: func(k *suite.Kit, p *suite.Plan) error { return builds.Prepare(k, p) },
	Run: func(ctx context.Context, s *suite.Site) error {
		err := s.GoTest(ctx, suite.GoTest{
			Name: "buildbench", Program: s.Program("buildkit.test"), Dir: "/", Timeout: 18 * time.Minute,
			Only: "^TestTimes$", Env: []string{suite.TimesEnv + "=1"},
		})
		if err != nil {
			return err
		}
		return s.NoteTimes()
	},
}
