// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/box"
	"github.com/shimyard/shimyard/integration/conformance/results"
)

// Site is what a suite finds in its box. The daemon under test is the containerd in PATH, beside runc, ctr and the
// shim; the registry serves.
type Site struct {
	Plan
	Side results.Side
	// Out is a directory that outlives the box, for logs.
	Out string

	run   results.Run
	notes []string
}

// NewSite is for the driver.
func NewSite(p Plan, side results.Side, out string) *Site {
	return &Site{Plan: p, Side: side, Out: out}
}

// Program is the path of one of the programs of the plan.
func (s *Site) Program(name string) string { return filepath.Join(box.Programs, name) }

// Report adds tests to the result.
func (s *Site) Report(tests ...results.Test) { s.run.Tests = append(s.run.Tests, tests...) }

// ReportError reports one test that is not a program of tests: it passes if err is nil.
func (s *Site) ReportError(name string, err error) {
	t := results.Test{Name: name, Outcome: results.Pass}
	if err != nil {
		t.Outcome, t.Output = results.Fail, err.Error()
	}
	s.Report(t)
}

// Fail says that the run as a whole is not what it should be.
func (s *Site) Fail(format string, args ...any) {
	s.run.Errors = append(s.run.Errors, fmt.Sprintf(format, args...))
}

// Note has a line said under the table.
func (s *Site) Note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf("%s: ", s.Side)+fmt.Sprintf(format, args...))
}

// Result is what was reported so far.
func (s *Site) Result() (results.Run, []string) { return s.run, s.notes }

// Log opens a file in Out; what is written to it also goes nowhere else.
func (s *Site) Log(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.Out, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return f, errors.Wrap(err, "cannot open a log")
}

// Command is a program with the box's environment, that writes to the log of that name.
func (s *Site) Command(ctx context.Context, log io.Writer, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = os.Environ()
	cmd.Stdout, cmd.Stderr = log, log
	return cmd
}

// GoTest is a compiled test program.
type GoTest struct {
	// Name is that of the log.
	Name string
	// Label goes before the names of its tests, where a suite runs them in several ways.
	Label string
	// Program is its path, Dir the directory that it runs in.
	Program, Dir string
	// Args are further arguments, Env further environment.
	Args, Env []string
	// Skip are tests that cannot pass here, with the reason, by their whole names.
	Skip map[string]string
	// Only narrows it to the tests that match. It runs none if the suite is narrowed to others.
	Only string
	// Timeout is passed on as -test.timeout.
	Timeout time.Duration
}

// GoTest runs the program and reports its tests. A program that fails is no error if a test did.
func (s *Site) GoTest(ctx context.Context, g GoTest) error {
	focus := s.Focus
	if g.Only != "" {
		if focus != "" && focus != g.Only {
			return nil
		}
		focus = g.Only
	}
	log, err := s.Log(g.Name + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{"-t", g.Program, "-test.v=test2json", "-test.timeout=" + g.Timeout.String()}, g.Args...)
	if focus != "" {
		args = append(args, "-test.run="+focus)
	}
	if len(g.Skip) > 0 {
		args = append(args, "-test.skip="+skipPattern(g.Skip))
	}
	for name, reason := range g.Skip {
		if s.Focus == "" {
			s.Report(results.Test{Name: g.Label + name, Outcome: results.Skip, Output: reason})
		}
	}
	self, err := s.env()
	if err != nil {
		return err
	}
	cmd := s.Command(ctx, log, s.Program("test2json"), args...)
	cmd.Dir, cmd.Env = g.Dir, append(append(cmd.Env, self), g.Env...)
	pr, pw := io.Pipe()
	cmd.Stdout = pw
	type read struct {
		tests []results.Test
		err   error
	}
	done := make(chan read, 1)
	go func() {
		tests, err := results.ReadGoTest(pr, log)
		_, _ = io.Copy(io.Discard, pr) // the writer goes on after an error
		done <- read{tests, err}
	}()
	err = cmd.Run()
	pw.Close()
	r := <-done
	for i := range r.tests {
		r.tests[i].Name = g.Label + r.tests[i].Name
	}
	s.Report(r.tests...)
	if r.err != nil {
		return r.err
	}
	if len(r.tests) == 0 && s.Focus == "" {
		return errors.Errorf("%s ran no test, see %s", g.Name, log.Name())
	}
	for _, t := range r.tests {
		if t.Outcome == results.Fail {
			return nil
		}
	}
	return errors.Wrapf(err, "%s failed and none of its tests did, see %s", g.Name, log.Name())
}

// skipPattern matches the tests. Slashes part the levels of a name.
func skipPattern(skip map[string]string) string {
	var list []string
	for name := range skip {
		levels := strings.Split(name, "/")
		for i, l := range levels {
			levels[i] = "^" + regexp.QuoteMeta(l) + "$"
		}
		list = append(list, strings.Join(levels, "/"))
	}
	return strings.Join(list, "|")
}
