// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// docker is this module's own suite of dockerd, as Debian has it, over the containerd in PATH.
var docker = &suite.Suite{
	Name:    "docker",
	About:   "Debian's dockerd: run, exec, logs, restart policy, OOM, live-restore, exits while a daemon is down",
	Timeout: 30 * time.Minute,
	Prepare: func(k *suite.Kit, p *suite.Plan) error {
		packages := []string{"docker.io", "libdevmapper1.02.1"}
		dir, err := k.Debian("docker", nil, packages...)
		if err != nil {
			return err
		}
		// From Debian 13 on the client is a package of its own.
		if _, err := os.Stat(filepath.Join(dir, "usr/bin/docker")); errors.Is(err, os.ErrNotExist) {
			if dir, err = k.Debian("docker-with-cli", nil, append(packages, "docker-cli")...); err != nil {
				return err
			}
		}
		p.Layers = append(p.Layers, dir)
		if p.Programs["docker.test"], err = k.Own("docker.test", "./docker", true); err != nil {
			return err
		}
		return k.Network(p)
	},
	Run: func(ctx context.Context, s *suite.Site) error {
		if err := s.Network(ctx); err != nil {
			return err
		}
		return s.GoTest(ctx, suite.GoTest{
			Name: "docker", Program: s.Program("docker.test"), Dir: "/", Timeout: 28 * time.Minute,
			Args: []string{"-test.parallel=4"}, // they wait
		})
	},
}
