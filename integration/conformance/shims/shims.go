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
	// Cannot are tests that it does not pass with any daemon, by name, with the reason.
	Cannot map[string]string
	// NoExec says that what it makes of an exec is not to be relied on, NoCodes that it tells every exit code as 0,
	// NoConnect that it does not say who it is: while it is silent the state of its task is not known.
	NoExec, NoCodes, NoConnect bool
}

// Generations are all of them, the oldest first.
var Generations = []Generation{
	{Name: "runc-1.6", Get: func(k *suite.Kit) (string, error) { return k.Shim16() }},
	{Name: "runc-1.7", Get: func(k *suite.Kit) (string, error) { return k.Shim17() }},
	{Name: "runc-2.0", Get: ofModule("v2.0.14", "h1:f+wIN6XMP+EsDTD8eKc4aCTMxmb184p/ICs0KQYCYBg=")},
	{Name: "runc-2.2", Get: func(k *suite.Kit) (string, error) { return k.Shim22() }},
	{Name: "runc-2.3", Get: ofModule("v2.3.7", "h1:7PGbgAVKE4ieQjFPv7+kwAv7f9dCtRpExZwjExHD/Fk=")},
	{Name: "rust-0.1", Get: ofCrate("0.1.1", "async"), NoExec: true, NoCodes: true, NoConnect: true,
		Cannot: map[string]string{
			"TestExec":         "the shim may leave the Start of an exec unanswered for ever",
			"TestPause":        "the shim has no Pause",
			"TestStatsAndPids": "the shim has no Stats",
			"TestStartOptions": "the shim does not read its options",
			"TestRollback":     "ends with stock, which forgets a task of that release and leaves its shim behind",
		}},
	{Name: "rust-sync", Get: ofCrate("0.1.1"), Cannot: map[string]string{"TestPause": "the shim has no Pause"}},
	{Name: "rust-0.2", Get: ofCrate("0.2.0")},
}

// ofCrate builds the shim of a release of rust-extensions.
func ofCrate(version string, features ...string) func(*suite.Kit) (string, error) {
	return func(k *suite.Kit) (string, error) {
		return k.Crate(suite.Crate{
			Name: "containerd-runc-shim", Version: version, Features: features, Program: "containerd-shim-runc-v2-rs",
		})
	}
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

// Add adds it to the plan, or why it cannot be had on this machine.
func (g Generation) Add(k *suite.Kit, p *suite.Plan) error {
	path, err := g.Get(k)
	if err != nil {
		return g.lacking(p, err)
	}
	p.Programs[g.Program()] = path
	return nil
}

// lacking notes in the plan why a shim cannot be had on this machine, if that is what the error says, and returns any
// other error.
func (g Generation) lacking(p *suite.Plan, err error) error {
	if errors.Is(err, suite.ErrMissing) || errors.Is(err, tools.ErrNoPackage) {
		p.Data[g.lacks()] = err.Error()
		return nil
	}
	return err
}

func (g Generation) lacks() string { return "lacks " + g.Name }
