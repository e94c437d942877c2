// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package results

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadGinkgo(t *testing.T) {
	const report = `[{"SpecReports":[
{"LeafNodeType":"BeforeSuite","State":"passed"},
{"ContainerHierarchyTexts":["[k8s.io] Pods","when up"],"LeafNodeType":"It","LeafNodeText":"serve","State":"passed","RunTime":1500000000},
{"LeafNodeType":"It","LeafNodeText":"fail","State":"failed","Failure":{"Message":"because"},"CapturedGinkgoWriterOutput":"log"},
{"LeafNodeType":"It","LeafNodeText":"time out","State":"timedout","Failure":{"Message":"late"}},
{"LeafNodeType":"It","LeafNodeText":"filtered","State":"skipped"},
{"LeafNodeType":"It","LeafNodeText":"skipped","State":"skipped","Failure":{"Message":"no SELinux"}},
{"LeafNodeType":"AfterSuite","State":"panicked","Failure":{"Message":"oh"}}
]}]`
	tests, err := ReadGinkgo(strings.NewReader(report))
	require.NoError(t, err)
	require.Equal(t, []Test{
		{Name: "[k8s.io] Pods when up serve", Outcome: Pass, Seconds: 1.5},
		{Name: "fail", Outcome: Fail, Output: "because\nlog"},
		{Name: "time out", Outcome: Fail, Output: "late\n"},
		{Name: "skipped", Outcome: Skip, Output: "no SELinux"},
		{Name: "[AfterSuite]", Outcome: Fail, Output: "oh\n"},
	}, tests)
	_, err = ReadGinkgo(strings.NewReader("["))
	require.Error(t, err)
}
