// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"time"

	"github.com/shimyard/shimyard/integration/conformance/buildkit"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// buildkitd is the module of buildkitd and buildctl.
var buildkitd = suite.Source{
	Path: "github.com/moby/buildkit", Version: "v0.34.2", Sum: "h1:fXgOe79JW5zJNDumRtwTemOklLX66otQokObUXuiGJo=",
}

// builds is this module's own suite of buildkitd, with its containerd worker.
var builds = &suite.Suite{
	Name:    "buildkit",
	About:   "buildkitd " + buildkitd.Version + ": steps, exit codes, mounts, cancelled builds, restarts",
	Timeout: 20 * time.Minute,
	Prepare: func(k *suite.Kit, p *suite.Plan) error {
		dir, err := k.Dir(buildkitd)
		if err != nil {
			return err
		}
		for _, name := range []string{"buildkitd", "buildctl"} {
			p.Programs[name], err = k.Build(suite.Build{Name: name, Dir: dir, Package: "./cmd/" + name})
			if err != nil {
				return err
			}
		}
		if err := runcWithSeccomp(k, p); err != nil {
			return err
		}
		if p.Data[buildkit.Busybox], err = k.Busybox(); err != nil {
			return err
		}
		p.Programs["buildkit.test"], err = k.Own("buildkit.test", "./buildkit", true)
		return err
	},
	Run: func(ctx context.Context, s *suite.Site) error {
		return s.GoTest(ctx, suite.GoTest{Name: "buildkit", Program: s.Program("buildkit.test"), Dir: "/",
			Timeout: 18 * time.Minute})
	},
}
