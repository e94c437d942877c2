// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package buildkit

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// TestTimes measures what users wait for: builds without a cache. What it finds is for the suite to say.
func TestTimes(t *testing.T) {
	if os.Getenv(suite.TimesEnv) == "" {
		t.Skip("the suite buildbench measures")
	}
	h := theHost(t)
	const builds = 5
	took := map[string][]time.Duration{}
	for range 1 + builds { // the first makes what the others find
		for name, dockerfile := range timed() {
			begin := time.Now()
			h.build(t, dockerfile, "--no-cache")
			took[name] = append(took[name], time.Since(begin))
		}
	}
	for name := range took {
		took[name] = took[name][1:]
	}
	require.NoError(t, h.site.WriteTimes(took))
}

// timed are the builds: steps of which each needs the one before, and stages that need each other only at the end.
func timed() map[string]string {
	const steps, stages = 30, 16
	var row, once, last strings.Builder
	fmt.Fprintf(&row, "FROM %s\n", Image)
	for i := range steps {
		fmt.Fprintf(&row, "RUN echo %d >> /steps\n", i)
	}
	last.WriteString("FROM scratch\n")
	for i := range stages {
		fmt.Fprintf(&once, "FROM %s AS s%d\nRUN echo %d > /mine\n", Image, i, i)
		fmt.Fprintf(&last, "COPY --from=s%d /mine /%d\n", i, i)
	}
	return map[string]string{
		fmt.Sprintf("%d RUN steps in a row", steps): row.String(),
		fmt.Sprintf("%d stages at once", stages):    once.String() + last.String(),
	}
}
