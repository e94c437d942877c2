// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package suites is the list of all suites. Each is in a file of its own.
package suites

import (
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// All are the suites, in the order in which they are run.
var All = []*suite.Suite{
	client, cri, critest, criBench, nri, docker, foreign,
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
