// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"os"
	"path/filepath"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/results"
)

// Ginkgo is a compiled test program that ginkgo runs.
type Ginkgo struct {
	// Name is that of the log, Program the path, Args are further arguments.
	Name, Program string
	Args          []string
}

// Ginkgo runs the program and reports its specs. A program that fails is no error if a spec did.
func (s *Site) Ginkgo(ctx context.Context, g Ginkgo) error {
	log, err := s.Log(g.Name + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	report := filepath.Join(s.Out, g.Name+".ginkgo.json")
	args := append([]string{"-ginkgo.no-color", "-ginkgo.json-report=" + report}, g.Args...)
	if s.Focus != "" {
		args = append(args, "-ginkgo.focus="+s.Focus)
	}
	cmd := s.Command(ctx, log, g.Program, args...)
	cmd.Dir = "/tmp"
	runErr := cmd.Run()
	f, err := os.Open(report)
	if err != nil {
		return errors.Errorf("%s left no report (%v), see %s", g.Name, runErr, log.Name())
	}
	defer f.Close()
	tests, err := results.ReadGinkgo(f)
	if err != nil {
		return err
	}
	s.Report(tests...)
	for _, t := range tests {
		if t.Outcome == results.Fail {
			return nil
		}
	}
	if len(tests) == 0 && s.Focus == "" {
		return errors.Errorf("%s ran no spec, see %s", g.Name, log.Name())
	}
	return errors.Wrapf(runErr, "%s failed and none of its specs did, see %s", g.Name, log.Name())
}
