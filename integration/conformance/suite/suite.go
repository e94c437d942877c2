// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package suite is what a suite is written against: what it says of itself, what it prepares on the machine, and what
// it finds in the box that it runs in.
package suite

import (
	"context"
	"net/http"
	"time"

	"github.com/shimyard/shimyard/integration/conformance/images"
	"github.com/shimyard/shimyard/integration/conformance/results"
)

// Suite is one suite of tests that are not this project's, or that hold a program to this project's daemon.
type Suite struct {
	// Name is a word: make conformance-NAME runs it, known/NAME.txt is its list.
	Name string
	// About says in a few words what it is, with the version.
	About string
	// Timeout is how long one side may take.
	Timeout time.Duration
	// Prepare builds, downloads and unpacks what it needs, on the machine. An error that wraps tools.ErrNoPackage or
	// ErrMissing skips the suite.
	Prepare func(k *Kit, p *Plan) error
	// Images are those that it pulls beyond images.Parts.All; nil for none.
	Images func(parts *images.Parts) []images.Image
	// Web are other hosts that it asks over HTTPS, by name; nil for none. It is called on the machine for the names,
	// and in the box.
	Web func(p *Plan) map[string]http.Handler
	// Run runs it, in the box, as one side. What it reports through the Site counts, and stays when it fails with an
	// error.
	Run func(ctx context.Context, s *Site) error
}

// Plan is what the box of a suite is given. It crosses into the box as JSON.
type Plan struct {
	// Programs are copied into the box's PATH, by name.
	Programs map[string]string
	// Shared are directories of the machine that the suite reads.
	Shared []string
	// Layers are directories that are merged over the machine's files, see Kit.Debian.
	Layers []string
	// Data is whatever Prepare wants to tell Run.
	Data map[string]string
	// Focus narrows the suite to the tests whose names match, as the program that runs them understands it; empty for
	// all.
	Focus string
}

// Sides are the daemons that each suite is run against, in this order.
var Sides = []results.Side{results.Stock, results.Ours}
