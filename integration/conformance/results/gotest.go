// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package results

import (
	"bufio"
	"encoding/json"
	"io"
	"strings"

	"github.com/pkg/errors"
)

// keepOutput is how much of a test's output is kept, in bytes.
const keepOutput = 8 << 10

// ReadGoTest reads the JSON of test2json until the end of r. Of tests with subtests only the subtests are counted,
// unless the test failed and none of them did. A test that has begun and not ended failed; of one that ran several
// times the last counts. What the program wrote
// goes to log.
func ReadGoTest(r io.Reader, log io.Writer) ([]Test, error) {
	g := goTest{byName: map[string]*goTestCase{}}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var e goTestEvent
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			return nil, errors.Wrapf(err, "cannot read the test event %q", s.Text())
		}
		if _, err := io.WriteString(log, e.Output); err != nil {
			return nil, errors.Wrap(err, "cannot write what a test wrote")
		}
		g.add(e)
	}
	return g.tests(), errors.Wrap(s.Err(), "cannot read test events")
}

type goTestEvent struct {
	Action, Test, Output string
	Elapsed              float64
}

type goTestCase struct {
	Test
	children    int
	failedBelow bool
}

type goTest struct {
	byName map[string]*goTestCase
	order  []*goTestCase
}

func (g *goTest) add(e goTestEvent) {
	if e.Test == "" { // the package
		return
	}
	c := g.byName[e.Test]
	if c == nil {
		c = &goTestCase{Test: Test{Name: e.Test, Outcome: Fail}}
		g.byName[e.Test] = c
		g.order = append(g.order, c)
	}
	switch e.Action {
	case "run": // it may have before
		c.Outcome, c.Output = Fail, ""
	case "pass", "fail", "skip":
		c.Outcome, c.Seconds = Outcome(e.Action), e.Elapsed
	case "output":
		c.Output += e.Output
		if len(c.Output) > keepOutput {
			c.Output = c.Output[len(c.Output)-keepOutput:]
		}
	}
}

func (g *goTest) tests() []Test {
	for _, c := range g.order {
		for parent := c.Name; strings.Contains(parent, "/"); {
			parent = parent[:strings.LastIndexByte(parent, '/')]
			if p := g.byName[parent]; p != nil {
				p.children++
				p.failedBelow = p.failedBelow || c.Outcome == Fail
			}
		}
	}
	var list []Test
	for _, c := range g.order {
		if c.children > 0 && (c.Outcome != Fail || c.failedBelow) {
			continue
		}
		if c.Outcome == Pass {
			c.Output = ""
		}
		list = append(list, c.Test)
	}
	return list
}
