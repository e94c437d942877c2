// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command conformance runs suites against stock containerd and against the daemon with this project's runtime, one
// after the other, and compares. Run it in the repository as root; see the module's README.md.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"context"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/box"
	"github.com/shimyard/shimyard/integration/conformance/results"
	"github.com/shimyard/shimyard/integration/conformance/suite"
	"github.com/shimyard/shimyard/integration/conformance/suites"
	"github.com/shimyard/shimyard/integration/internal/tools"
)

func main() {
	box.Dispatch()
	if len(os.Args) > 1 && os.Args[1] == driveRole {
		exit(drive(os.Args[2:]))
	}
	focus := flag.String("run", "", "only the tests whose names match this pattern")
	side := flag.String("side", "", "run against this side only, stock or ours, and compare nothing")
	readme := flag.String("readme", "", "put the table of all suites between the marks of this file")
	flag.Usage = usage
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, flag.Args(), options{focus: *focus, side: results.Side(*side), readme: *readme}))
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: conformance [flags] SUITE...|all|table")
	flag.PrintDefaults()
	for _, s := range suites.All {
		fmt.Fprintf(os.Stderr, "  %-12s %s\n", s.Name, s.About)
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

type options struct {
	focus, readme string
	side          results.Side
}

func run(ctx context.Context, names []string, o options) error {
	if len(names) == 0 {
		usage()
		return errors.New("no suite was named")
	}
	t, err := tools.New(os.Stderr)
	if err != nil {
		return err
	}
	r := &runner{kit: suite.NewKit(t), options: o, out: filepath.Join(filepath.Dir(t.Module), "bin", "conformance")}
	if names[0] == "table" {
		return r.table()
	}
	list, err := chosen(names)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return box.ErrNotRoot
	}
	var failed []string
	for _, s := range list {
		ok, err := r.suite(ctx, s)
		if err != nil {
			fmt.Fprintf(os.Stderr, "conformance: %s: %v\n", s.Name, err)
		}
		if err != nil || !ok {
			failed = append(failed, s.Name)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if len(list) > 1 {
		if err := r.table(); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return errors.Errorf("not as it should be: %s", strings.Join(failed, ", "))
	}
	return nil
}

func chosen(names []string) ([]*suite.Suite, error) {
	if len(names) == 1 && names[0] == "all" {
		return suites.All, nil
	}
	var list []*suite.Suite
	for _, n := range names {
		s, err := suites.Find(n)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}
