// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance"
	"github.com/shimyard/shimyard/integration/conformance/box"
	"github.com/shimyard/shimyard/integration/conformance/images"
	"github.com/shimyard/shimyard/integration/conformance/results"
	"github.com/shimyard/shimyard/integration/conformance/suite"
	"github.com/shimyard/shimyard/integration/conformance/suites"
	"github.com/shimyard/shimyard/integration/internal/tools"
)

// runner runs suites from outside of their boxes.
type runner struct {
	options
	kit *suite.Kit
	out string
}

// brief is what the driver in a box is told, by a file in its directory.
type brief struct {
	suite.Plan
	Side     results.Side
	Identity images.Identity
	Busybox  string
	Guest    string
	Wrapper  string // cmd/runc
}

// report is what it leaves there.
type report struct {
	results.Run
	Notes []string
}

const (
	briefFile  = "brief.json"
	reportFile = "report.json"
)

// suite runs one suite on both sides and reports whether all is as it should be.
func (r *runner) suite(ctx context.Context, s *suite.Suite) (bool, error) {
	known, err := conformance.Known(s.Name)
	if err != nil {
		return false, err
	}
	say("%s: preparing", s.Name)
	p := &suite.Plan{Programs: map[string]string{}, Data: map[string]string{}, Focus: r.focus}
	b, err := r.prepare(s, p)
	if errors.Is(err, tools.ErrNoPackage) || errors.Is(err, suite.ErrMissing) {
		say("%s: SKIPPED: %v", s.Name, err)
		return true, nil
	} else if err != nil {
		return false, err
	}
	runs, notes := map[results.Side]*results.Run{}, []string(nil)
	for _, side := range suite.Sides {
		if r.side != "" && r.side != side {
			continue
		}
		b.Side = side
		rep, err := r.sideOf(ctx, s, *b)
		if err != nil {
			return false, err
		}
		runs[side], notes = &rep.Run, append(notes, rep.Notes...)
	}
	if r.side != "" {
		return printOne(s.Name, r.side, runs[r.side]), nil
	}
	sum := results.Compare(s.Name, runs[results.Stock], runs[results.Ours], known, r.focus != "")
	sum.About, sum.Notes = s.About, notes
	fmt.Print(sum)
	if r.focus != "" { // the table is of whole suites
		return len(sum.Errors) == 0, nil
	}
	return len(sum.Errors) == 0, writeJSON(filepath.Join(r.out, s.Name+".json"), sum)
}

// prepare builds what every suite needs, and what this one does.
func (r *runner) prepare(s *suite.Suite, p *suite.Plan) (*brief, error) {
	k := r.kit
	b := &brief{}
	for name, build := range map[string]func() (string, error){
		"runc": k.Runc, "ctr": k.Ctr, "containerd-shim-runc-v2": k.Shim,
		"test2json": func() (string, error) {
			return k.Build(suite.Build{Name: "test2json", Dir: k.Module, Package: "cmd/test2json"})
		},
		string(results.Stock): k.Stock, string(results.Ours): k.Daemon,
	} {
		path, err := build()
		if err != nil {
			return nil, err
		}
		p.Programs[name] = path
	}
	var err error
	if b.Busybox, err = k.Busybox(); err != nil {
		return nil, err
	}
	if b.Guest, err = k.Own("guest", "./cmd/guest", false); err != nil {
		return nil, err
	}
	if b.Wrapper, err = k.Own("runc-wrapper", "./cmd/runc", false); err != nil {
		return nil, err
	}
	if err := s.Prepare(k, p); err != nil {
		return nil, err
	}
	b.Plan = *p
	return b, nil
}

// sideOf runs the suite against one side, in a box of its own.
func (r *runner) sideOf(ctx context.Context, s *suite.Suite, b brief) (*report, error) {
	out := filepath.Join(r.out, s.Name, string(b.Side))
	if err := os.RemoveAll(out); err != nil {
		return nil, errors.Wrap(err, "cannot remove the logs of the last run")
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, errors.Wrap(err, "cannot make a directory for logs")
	}
	parts, err := images.NewParts(images.Programs{Busybox: b.Busybox, Guest: b.Guest})
	if err != nil {
		return nil, err
	}
	hosts := images.Hosts(catalog(s, parts))
	for host := range web(s, &b.Plan) {
		hosts = append(hosts, host)
	}
	id, err := images.NewIdentity(hosts)
	if err != nil {
		return nil, err
	}
	b.Identity = *id
	if err := writeJSON(filepath.Join(out, briefFile), b); err != nil {
		return nil, err
	}
	say("%s: %s, logs in %s", s.Name, b.Side, out)
	console, err := os.Create(filepath.Join(out, "console.log"))
	if err != nil {
		return nil, errors.Wrap(err, "cannot make a log")
	}
	defer console.Close()
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	start := time.Now()
	err = box.Run(ctx, box.Spec{
		Layers: b.Layers, Shared: append([]string{filepath.Dir(r.kit.Tools.Module), r.kit.Tools.Dir}, b.Shared...),
		Out:   out,
		Hosts: hosts, Trusted: id.Certificate, Stdout: console, Stderr: console,
		Args: []string{driveRole, s.Name, out},
		Env:  []string{"PATH=" + box.Path, "HOME=/root", "LANG=C.UTF-8", "USER=root"},
	})
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) && ctx.Err() == nil {
		return nil, err
	}
	rep := &report{}
	if rerr := readJSON(filepath.Join(out, reportFile), rep); rerr != nil {
		return nil, errors.Errorf("%s: the suite left no result (%v), see %s", b.Side, err, console.Name())
	}
	rep.Seconds = time.Since(start).Seconds()
	return rep, nil
}

// catalog are all images that the suite may pull.
func catalog(s *suite.Suite, parts *images.Parts) []images.Image {
	list := parts.All()
	if s.Images != nil {
		list = append(list, s.Images(parts)...)
	}
	return list
}

// web are the other hosts that the suite asks.
func web(s *suite.Suite, p *suite.Plan) map[string]http.Handler {
	if s.Web == nil {
		return nil
	}
	return s.Web(p)
}

// table prints what the last runs of all suites have left.
func (r *runner) table() error {
	var list []*results.Summary
	for _, s := range suites.All {
		var sum results.Summary
		err := readJSON(filepath.Join(r.out, s.Name+".json"), &sum)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		list = append(list, &sum)
	}
	text := results.Markdown(list)
	fmt.Print(text)
	if r.readme == "" {
		return nil
	}
	data, err := os.ReadFile(r.readme)
	if err != nil {
		return errors.Wrap(err, "cannot put the table into a document")
	}
	changed, ok := results.Replace(string(data), text)
	if !ok {
		return errors.Errorf("cannot put the table into %s: it lacks %s and %s", r.readme, results.Begin, results.End)
	}
	return errors.Wrap(os.WriteFile(r.readme, []byte(changed), 0o644), "cannot put the table into a document")
}

// printOne is for a run of one side.
func printOne(name string, side results.Side, run *results.Run) bool {
	fmt.Printf("%s, %s: %d passed, %d failed, %d skipped\n", name, side, run.Count(results.Pass),
		run.Count(results.Fail), run.Count(results.Skip))
	for _, t := range run.Tests {
		if t.Outcome == results.Fail {
			fmt.Printf("failed: %s\n", t.Name)
		}
	}
	for _, e := range run.Errors {
		fmt.Println("ERROR:", e)
	}
	return run.Count(results.Fail) == 0 && len(run.Errors) == 0
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05")+" "+format+"\n", args...)
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return errors.Wrapf(err, "cannot write %s", path)
	}
	return errors.Wrapf(os.WriteFile(path, append(data, '\n'), 0o644), "cannot write %s", path)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return errors.Wrapf(err, "cannot read %s", path)
	}
	return errors.Wrapf(json.Unmarshal(data, v), "cannot read %s", path)
}
