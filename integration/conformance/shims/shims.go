// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package shims holds a daemon to shims that others wrote, each as the containerd-shim-runc-v2 in PATH, and says how to
// get them. Its tests run in a box.
package shims

import (
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/suite"
	"github.com/shimyard/shimyard/integration/internal/tools"
)

// Generation is a shim.
type Generation struct {
	// Name is a short one, with the version.
	Name string
	// Get builds or unpacks it.
	Get func(k *suite.Kit) (string, error)
}

// Generations are all of them, the oldest first.
var Generations = []Generation{
	{"runc-1.6", func(k *suite.Kit) (string, error) { return k.Shim16() }},
	{"runc-1.7", func(k *suite.Kit) (string, error) { return k.Shim17() }},
	{"runc-2.0", ofModule("v2.0.14", "h1:f+wIN6XMP+EsDTD8eKc4aCTMxmb184p/ICs0KQYCYBg=")},
	{"runc-2.2", func(k *suite.Kit) (string, error) { return k.Shim22() }},
	{"runc-2.3", ofModule("v2.3.7", "h1:7PGbgAVKE4ieQjFPv7+kwAv7f9dCtRpExZwjExHD/Fk=")},
}

// ofModule builds the shim of a release of containerd.
func ofModule(version, sum string) func(*suite.Kit) (string, error) {
	return func(k *suite.Kit) (string, error) {
		dir, err := k.Dir(suite.Source{Path: "github.com/containerd/containerd/v2", Version: version, Sum: sum})
		if err != nil {
			return "", err
		}
		return k.Build(suite.Build{
			Name: "shim-" + version, Dir: dir, Package: "./cmd/containerd-shim-runc-v2",
			// Some releases have parts of a vendor directory in their module.
			Flags: []string{"-mod=readonly"},
		})
	}
}

// Program is the name that the shim has in the box's PATH. No daemon looks for it there.
func (g Generation) Program() string { return "shim-" + g.Name }

// StockProgram is the name of stock's daemon in the box's PATH, on either side.
const StockProgram = "containerd-as-released"

// Lacks notes in the plan why a shim cannot be had on this machine, if that is what the error says, and returns any
// other error.
func (g Generation) Lacks(p *suite.Plan, err error) error {
	if errors.Is(err, suite.ErrMissing) || errors.Is(err, tools.ErrNoPackage) {
		p.Data[g.lacks()] = err.Error()
		return nil
	}
	return err
}

func (g Generation) lacks() string { return "lacks " + g.Name }
