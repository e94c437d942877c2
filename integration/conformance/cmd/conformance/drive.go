// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/box"
	"github.com/shimyard/shimyard/integration/conformance/images"
	"github.com/shimyard/shimyard/integration/conformance/results"
	"github.com/shimyard/shimyard/integration/conformance/suite"
	"github.com/shimyard/shimyard/integration/conformance/suites"
)

// driveRole is the first argument of the copy of this program that runs in a box.
const driveRole = "drive"

// drive runs one suite in its box: args are its name and the directory of its brief, in which it leaves the report.
func drive(args []string) error {
	s, err := suites.Find(args[0])
	if err != nil {
		return err
	}
	out := args[1]
	var b brief
	if err := readJSON(filepath.Join(out, briefFile), &b); err != nil {
		return err
	}
	if err := furnish(s, &b, out); err != nil {
		return err
	}
	// The box is ended when the time is up; the suite ends before, and leaves its report.
	ctx, cancel := context.WithTimeout(context.Background(), s.Timeout-30*time.Second)
	defer cancel()
	site := suite.NewSite(b.Plan, b.Side, out)
	if err := s.Run(ctx, site); err != nil {
		site.Fail("%v", err)
	}
	site.Report(leftovers())
	var rep report
	rep.Run, rep.Notes = site.Result()
	return writeJSON(filepath.Join(out, reportFile), rep)
}

// furnish puts programs into PATH and serves the images.
func furnish(s *suite.Suite, b *brief, out string) error {
	for name, path := range b.Programs {
		switch results.Side(name) {
		case b.Side:
			name = "containerd"
		case results.Stock, results.Ours:
			continue
		}
		if err := copyFile(path, filepath.Join(box.Programs, name)); err != nil {
			return err
		}
	}
	if suite.CannotLowerOOM() {
		if err := os.Rename(filepath.Join(box.Programs, "runc"), filepath.Join(box.Programs, "runc.real")); err != nil {
			return errors.Wrap(err, "cannot put a program before runc")
		}
		if err := copyFile(b.Wrapper, filepath.Join(box.Programs, "runc")); err != nil {
			return err
		}
	}
	parts, err := images.NewParts(images.Programs{Busybox: b.Busybox, Guest: b.Guest})
	if err != nil {
		return err
	}
	reg := images.NewRegistry()
	log, err := os.Create(filepath.Join(out, "registry.log")) // open until the process ends
	if err != nil {
		return errors.Wrap(err, "cannot make the registry's log")
	}
	reg.Missing = func(url string) { fmt.Fprintln(log, "not found:", url) }
	if err := reg.Add(catalog(s, parts)...); err != nil {
		return err
	}
	for host, h := range web(s, &b.Plan) {
		reg.Handle(host, h)
	}
	return reg.Serve(":443", &b.Identity)
}

func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return errors.Wrap(err, "cannot open a program")
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return errors.Wrap(err, "cannot make a program")
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return errors.Wrapf(err, "cannot copy %s", src)
	}
	return errors.Wrapf(out.Close(), "cannot copy %s", src)
}

// leftovers is a test of every suite: once it has ended, with its daemons, no shim is alive.
func leftovers() results.Test {
	t := results.Test{Name: results.Leftovers, Outcome: results.Pass}
	const settle = 20 * time.Second
	for end := time.Now().Add(settle); ; time.Sleep(100 * time.Millisecond) {
		left := shims()
		if len(left) == 0 {
			return t
		}
		if time.Now().After(end) {
			t.Outcome, t.Output = results.Fail, strings.Join(left, "\n")
			return t
		}
	}
}

// shims are the shim processes in the box. A zombie has no arguments.
func shims() []string {
	var list []string
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		if err != nil || !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") {
			continue
		}
		list = append(list, filepath.Base(dir)+" "+strings.Join(args, " "))
	}
	return list
}
