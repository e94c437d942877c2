// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"time"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// nri is this module's own suite of NRI, with a plugin on NRI's stub.
var nri = &suite.Suite{
	Name:    "nri",
	About:   "a plugin on NRI's stub: order, adjustment, update, eviction, restart",
	Timeout: 15 * time.Minute,
	Prepare: func(k *suite.Kit, p *suite.Plan) (err error) {
		p.Programs["nri.test"], err = k.Own("nri.test", "./nri", true)
		return err
	},
	Run: func(ctx context.Context, s *suite.Site) error {
		return s.GoTest(ctx, suite.GoTest{Name: "nri", Program: s.Program("nri.test"), Dir: "/",
			Timeout: 12 * time.Minute})
	},
}
