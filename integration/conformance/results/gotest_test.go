// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package results

import (
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const events = `{"Action":"start"}
{"Action":"run","Test":"TestA"}
{"Action":"output","Test":"TestA","Output":"hello\n"}
{"Action":"pass","Test":"TestA","Elapsed":0.5}
{"Action":"run","Test":"TestB"}
{"Action":"run","Test":"TestB/one"}
{"Action":"run","Test":"TestB/one/deep"}
{"Action":"output","Test":"TestB/one/deep","Output":"why\n"}
{"Action":"fail","Test":"TestB/one/deep"}
{"Action":"fail","Test":"TestB/one"}
{"Action":"run","Test":"TestB/two"}
{"Action":"skip","Test":"TestB/two"}
{"Action":"fail","Test":"TestB"}
{"Action":"run","Test":"TestC"}
{"Action":"run","Test":"TestC/fine"}
{"Action":"pass","Test":"TestC/fine"}
{"Action":"fail","Test":"TestC"}
{"Action":"run","Test":"TestD"}
{"Action":"fail"}
`

func TestReadGoTestCountsLeavesAndWhatFailedByItself(t *testing.T) {
	var log strings.Builder
	tests, err := ReadGoTest(strings.NewReader(events), &log)
	require.NoError(t, err)
	require.Equal(t, []Test{
		{Name: "TestA", Outcome: Pass, Seconds: 0.5},
		{Name: "TestB/one/deep", Outcome: Fail, Output: "why\n"},
		{Name: "TestB/two", Outcome: Skip},
		{Name: "TestC", Outcome: Fail},
		{Name: "TestC/fine", Outcome: Pass},
		{Name: "TestD", Outcome: Fail},
	}, tests)
	require.Equal(t, "hello\nwhy\n", log.String())
}

func TestReadGoTestTakesTheLastOfSeveralRounds(t *testing.T) {
	for rounds, want := range map[string]Outcome{
		"run fail run pass": Pass, "run pass run fail": Fail, "run pass run": Fail,
	} {
		var b strings.Builder
		for action := range strings.FieldsSeq(rounds) {
			b.WriteString(`{"Action":"` + action + `","Test":"T"}` + "\n")
		}
		tests, err := ReadGoTest(strings.NewReader(b.String()), io.Discard)
		require.NoError(t, err)
		require.Equal(t, []Test{{Name: "T", Outcome: want}}, tests, rounds)
	}
}

func TestReadGoTestTellsWhatIsNoEvent(t *testing.T) {
	_, err := ReadGoTest(strings.NewReader("panic: no JSON\n"), io.Discard)
	require.ErrorContains(t, err, "panic: no JSON")
}

func TestReadGoTestKeepsTheEndOfTheOutput(t *testing.T) {
	line := `{"Action":"output","Test":"T","Output":"` + strings.Repeat("x", keepOutput) + `"}` + "\n"
	tests, err := ReadGoTest(strings.NewReader(line+`{"Action":"output","Test":"T","Output":"end"}`+"\n"), io.Discard)
	require.NoError(t, err)
	require.Len(t, tests[0].Output, keepOutput)
	require.True(t, strings.HasSuffix(tests[0].Output, "xend"))
}
