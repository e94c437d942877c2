// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"time"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// dockerBench times containers of dockerd. Its figures are notes; that it runs is what is tested.
var dockerBench = &suite.Suite{
	Name:    "dockerbench",
	About:   "Debian's dockerd: how long docker run takes",
	Timeout: 20 * time.Minute,
	Prepare: func(k *suite.Kit, p *suite.Plan) error { return docker.Prepare(k, p) },
	Run: func(ctx context.Context, s *suite.Site) error {
		if err := s.Network(ctx); err != nil {
			return err
		}
		err := s.GoTest(ctx, suite.GoTest{
			Name: "dockerbench", Program: s.Program("docker.test"), Dir: "/", Timeout: 18 * time.Minute,
			Only: "^TestTimes$", Env: []string{suite.TimesEnv + "=1"},
		})
		if err != nil {
			return err
		}
		return s.NoteTimes()
	},
}
