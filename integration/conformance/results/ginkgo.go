// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package results

import (
	"encoding/json"
	"io"
	"strings"
	"time"

	"github.com/pkg/errors"
)

type ginkgoSuite struct {
	SpecReports []struct {
		ContainerHierarchyTexts []string
		LeafNodeType            string
		LeafNodeText            string
		State                   string
		RunTime                 time.Duration
		CapturedGinkgoWriterOutput,
		CapturedStdOutErr string
		Failure struct{ Message string }
	}
}

// ReadGinkgo reads a report that ginkgo wrote as JSON. Specs that were filtered away do not count. A node that is no
// spec, such as one that prepares the suite, counts if it failed.
func ReadGinkgo(r io.Reader) ([]Test, error) {
	var suites []ginkgoSuite
	if err := json.NewDecoder(r).Decode(&suites); err != nil {
		return nil, errors.Wrap(err, "cannot read ginkgo's report")
	}
	var list []Test
	for _, s := range suites {
		for _, spec := range s.SpecReports {
			t := Test{Seconds: spec.RunTime.Seconds(), Outcome: Fail}
			t.Name = strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
			if spec.LeafNodeType != "It" {
				t.Name = strings.TrimSpace("[" + spec.LeafNodeType + "] " + t.Name)
			}
			switch spec.State {
			case "passed":
				t.Outcome = Pass
			case "skipped", "pending":
				if spec.Failure.Message == "" { // filtered
					continue
				}
				t.Outcome, t.Output = Skip, spec.Failure.Message
			default:
				t.Output = spec.Failure.Message + "\n" + spec.CapturedGinkgoWriterOutput + spec.CapturedStdOutErr
				if len(t.Output) > keepOutput {
					t.Output = t.Output[:keepOutput]
				}
			}
			if spec.LeafNodeType == "It" || t.Outcome == Fail {
				list = append(list, t)
			}
		}
	}
	return list, nil
}
