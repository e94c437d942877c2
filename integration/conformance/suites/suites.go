// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package suites is the list of all suites. Each is in a file of its own.
package suites

import (
	"path/filepath"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// All are the suites, in the order in which they are run.
var All = []*suite.Suite{
	client, cri, critest, criBench, nri, docker, pods, foreign, builds, buildBench, dockerBench,
}

// Find is the suite of that name.
func Find(name string) (*suite.Suite, error) {
	for _, s := range All {
		if s.Name == name {
			return s, nil
		}
	}
	return nil, errors.Errorf("no suite is called %q", name)
}

// runcWithSeccomp has the box's runc be Debian's, for programs that want seccomp of every kernel which knows it: the
// one that is built here may lack it.
func runcWithSeccomp(k *suite.Kit, p *suite.Plan) error {
	dir, err := k.Debian("runc", nil, "runc", "libseccomp2")
	if err != nil {
		return err
	}
	p.Layers, p.Programs["runc"] = append(p.Layers, dir), filepath.Join(dir, "usr/sbin/runc")
	return nil
}
