// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"time"

	"github.com/shimyard/shimyard/integration/conformance/shims"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// foreign is this module's own suite of shims that others wrote. They are used as their authors built them, or would.
var foreign = &suite.Suite{
	Name:    "shims",
	About:   "runc's shims of containerd 1.6 to 2.3, and Rust's, unmodified",
	Timeout: 40 * time.Minute,
	Prepare: func(k *suite.Kit, p *suite.Plan) (err error) {
		for _, g := range shims.Generations {
			if err := g.Add(k, p); err != nil {
				return err
			}
		}
		// For the change from stock to the daemon under test, and back.
		if p.Programs[shims.StockProgram], err = k.Stock(); err != nil {
			return err
		}
		p.Programs["shims.test"], err = k.Own("shims.test", "./shims", true)
		return err
	},
	Run: func(ctx context.Context, s *suite.Site) error {
		return s.GoTest(ctx, suite.GoTest{
			Name: "shims", Program: s.Program("shims.test"), Dir: "/", Timeout: 38 * time.Minute,
		})
	},
}
