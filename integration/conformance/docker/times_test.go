// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// TestTimes measures what users wait for: a container from `docker run` to the prompt.
func TestTimes(t *testing.T) {
	if os.Getenv(suite.TimesEnv) == "" {
		t.Skip("the suite dockerbench measures")
	}
	h := theHost(t)
	const warm, runs = 3, 30
	var took []time.Duration
	for i := range warm + runs {
		begin := time.Now()
		_, code := h.once(t, "true")
		require.Zero(t, code)
		if i >= warm {
			took = append(took, time.Since(begin))
		}
	}
	require.NoError(t, suite.Attach(t).WriteTimes(map[string][]time.Duration{"docker run --rm of true": took}))
}
